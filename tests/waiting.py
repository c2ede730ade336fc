"""How long tests wait for other processes: until they are done, however busy the machine is.

``HUNG_S`` only ends what hangs; no test passes or fails by it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

HUNG_S = 1800.0


def wait_until(
    happened: Callable[[], object], process: subprocess.Popen[str] | None = None
) -> None:
    """Returns when ``happened``; fails with what ``process`` said if it ends before."""
    began = time.monotonic()
    while True:
        ended = process is not None and process.poll() is not None
        if happened():
            return
        assert not ended, process and process.communicate()
        assert time.monotonic() < began + HUNG_S, "hangs"
        time.sleep(0.01)
