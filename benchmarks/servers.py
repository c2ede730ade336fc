"""SGLang servers on this machine, as the benchmarks and the tests start them.

Owns what a server needs without a GPU, a port for it, and the wait until it answers. Knows no
model, no policy and nothing of what is measured; imports no SGLang.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pkgutil
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Container
from http.client import HTTPException
from pathlib import Path

CPU_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
"""What SGLang needs on a machine without a GPU, and one thread per process."""

CPU_ARGUMENTS = (
    *("--device", "cpu"),
    *("--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch"),
    *("--grammar-backend", "none"),
    *("--dtype", "float32"),
    *("--mem-fraction-static", "0.5"),
    "--disable-cuda-graph",
    "--sleep-on-idle",  # an idle server would take the core of the one that is looked at
    *("--log-level", "info"),
    *("--log-level-http", "warning"),
    *("--random-seed", "1"),
)


def unneeded_models(needed: Container[str]) -> str:
    """For SGLANG_DISABLED_MODEL_ARCHS: all modules of SGLang's model folder but those ``needed``;
    importing them takes 20 s."""
    spec = importlib.util.find_spec("sglang")
    places = list(spec.submodule_search_locations or []) if spec else []
    found = pkgutil.iter_modules([f"{place}/srt/models" for place in places])
    return ",".join(name for _, name, _ in found if name not in needed)


def free_port() -> int:
    """A TCP port nobody listens on, low enough for the second one that SGLang puts above it, and
    below those that the system gives to clients: one that waits for the server there may be given
    the port itself, and then talks to itself. Drawn, since a server may listen much later."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("100 ports between 20000 and 30000 are taken; end what listens there")


def wait_healthy(
    url: str, running: Callable[[], bool], *, timeout_s: float, every_s: float = 0.25
) -> bool:
    """Whether it answers /health before it ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and running():
        try:
            urllib.request.urlopen(f"{url}/health", timeout=20).close()
            return True
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError):
            time.sleep(every_s)
    return False


def last_line(log: Path) -> str:
    """Of a server's log: why it ended, often."""
    return " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])
