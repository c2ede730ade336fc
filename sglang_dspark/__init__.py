"""DSpark speculative decoding for SGLang: policies, drafter, serving, logs.

In order of import; none knows what stands below it:

- ``files``: reading and writing whole files, one sentence per failure
- ``server_client``: a running server's HTTP, as profiler, recorder and benchmarks need it
- ``extras``: which package comes with which extra
- ``own_names``: whether ``traces``, ``simulator`` and ``analysis`` are ours
- ``cli``: how every command ends
- ``commands``: every command once, by its words after ``dspark`` and its ``python -m`` path
- ``listing``: the command ``dspark list``
- ``price_export``: the command ``dspark prices export``
- ``core``: what the server and the simulator share, state in, plan out (numpy and numba only)
- ``logs``: what a server was asked, decided and saw come of it (neither torch nor SGLang)
- ``draft``: the drafter and its training (PyTorch)
- ``runtime``: DSPARK inside SGLang, the only room that imports it

``cost_models`` beside them holds the shipped step costs.

Five minutes for the whole: ``sglang_dspark.core.state`` (the two nouns),
``sglang_dspark.core.decide`` (what a policy is), ``sglang_dspark.runtime.worker.worker`` (a round
in a server), ``simulator.engine.kernel`` (the same in the simulator), ``simulator.fleet.fleet``
(time); then ``docs/design.md``.
"""

__version__ = "0.1.0"

from sglang_dspark import commands as _commands

_commands.install()
