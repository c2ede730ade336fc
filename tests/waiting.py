"""How long tests wait for other processes: until they are done, however busy the machine is.

``HUNG_S`` only ends what hangs; no test passes or fails by it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

HUNG_S = 3600.0


def wait_until(
    happened: Callable[[], object], process: subprocess.Popen[str] | None = None
) -> None:
    """Returns when ``happened``; fails with what ``process`` said if it ends before."""
    began = time.monotonic()
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < began + HUNG_S, "hangs"
        time.sleep(0.01)
