"""DSpark speculative decoding for SGLang: policies, cost models and calibration.

``sglang_dspark.core`` holds what the server and the simulator share (numpy and numba only);
``sglang_dspark.files`` and ``sglang_dspark.cli`` are how every command reads, writes and fails.
"""

__version__ = "0.1.0"

from sglang_dspark import commands as _commands

_commands.install()
