"""One measured case in a process of its own, so that no case finds another's memory or kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run_apart(module: str, *arguments: object) -> dict[str, Any]:
    """What ``module`` prints as JSON when it is run with ``arguments``."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))
