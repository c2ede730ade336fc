"""SGLang servers for tests: started from a warm process, and gone when the test is over.

Owns starting, waiting and stopping; what is sent to a server is ``serving_client``'s business.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.waiting import HUNG_S

ROOT = Path(__file__).parents[2]

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

STRICT_ENVIRONMENT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
}
"""SGLang's own accounting of KV pages, checked at every step: a leak or a page with two owners
stops the server."""

CPU_ARGUMENTS = (
    *("--device", "cpu"),
    *("--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch"),
    *("--grammar-backend", "none"),
    *("--dtype", "float32"),
    *("--mem-fraction-static", "0.5"),
    "--disable-cuda-graph",
    "--sleep-on-idle",
    "--enable-metrics",
    *("--log-level", "info"),
    *("--log-level-http", "warning"),
    *("--random-seed", "1"),
)


class ServerDied(RuntimeError):
    """The server ended, or never came up; the message carries the end of its log."""


def free_port() -> int:
    """A TCP port nobody listens on, low enough for the second one that SGLang puts above it, and
    below those that the system gives to clients: one that waits for the server there may be given
    the port itself, and then talks to itself."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("100 ports between 20000 and 30000 are taken; end what listens there")


@dataclass(kw_only=True)
class Server:
    """A running server."""

    url: str
    folder: Path
    """Log, metrics and temporary files."""
    pid: int
    nursery: Nursery
    stopped: bool = False

    @property
    def log(self) -> str:
        """All that it has printed."""
        return (self.folder / "server.log").read_text(errors="replace")

    def exit_code(self) -> int | None:
        """None while it runs."""
        code: int | None = self.nursery.ask({"do": "status", "pid": self.pid})["exit"]
        return code

    def processes(self) -> list[psutil.Process]:
        """The server and all that it started."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def get(self, path: str, *, timeout_s: float = 30.0) -> bytes:
        """Body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            body: bytes = answer.read()
            return body

    def wait(self, *, timeout_s: float = HUNG_S) -> None:
        """Until it answers /health; ``ServerDied`` when it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.exit_code() is not None:
                break
            try:
                self.get("/health", timeout_s=20)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        raise ServerDied(f"{self.url} is not healthy (exit {self.exit_code()})\n{self.log[-6000:]}")

    def stop(self) -> None:
        """Kill it and wait until nothing of it is left."""
        if self.stopped:
            return
        self.nursery.ask({"do": "stop", "pid": self.pid})
        self.stopped = True

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@dataclass(kw_only=True)
class Nursery:
    """The warm process and the servers it forked; leaving the context ends them all."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dspark-")))
    """Short, since it holds Unix sockets. Removed when the nursery closes cleanly."""
    module: str = "tests.runtime.nursery"
    """What the process runs."""
    warm_s: float = 0.0
    started: int = 0
    process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Nursery:
        with open(self.folder / "nursery.log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **CPU_ENVIRONMENT},
                cwd=ROOT,
            )
        self.warm_s = self._answer()["warm_s"]
        return self

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            log = (self.folder / "nursery.log").read_text()
            raise ServerDied(f"the nursery ended with {self.process.wait()}\n{log[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """One command, one answer."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        patch: str = "",
        wait: bool = True,
    ) -> Server:
        """A server with these arguments (host and port are added).

        ``patch`` names a ``module:function`` that is called in the server before
        anything else.
        """
        port = free_port()
        folder = self.folder / str(self.started)
        folder.mkdir()
        self.started += 1
        full = [*arguments, "--host", "127.0.0.1", "--port", str(port), "--skip-server-warmup"]
        pid = self.ask(
            {
                "do": "start",
                "arguments": full,
                "environment": {**STRICT_ENVIRONMENT, **(environment or {})},
                "folder": str(folder),
                "patch": patch,
            }
        )["pid"]
        url = f"http://127.0.0.1:{port}"
        server = Server(url=url, folder=folder, pid=pid, nursery=self)
        if wait:
            try:
                server.wait()
            except BaseException:
                server.stop()
                raise
        return server

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def plain_arguments(target: Path | str, *, kv_tokens: int = 4096, requests: int = 8) -> list[str]:
    """A server without speculation."""
    return [
        *("--model-path", str(target), *CPU_ARGUMENTS),
        *("--max-total-tokens", str(kv_tokens), "--max-running-requests", str(requests)),
    ]


def dspark_arguments(
    target: Path | str,
    drafter: Path | str,
    *,
    policy: str,
    cost_model: Path | str | None = None,
    kv_tokens: int = 4096,
    requests: int = 8,
) -> list[str]:
    """A server with this project's speculation."""
    costs = [] if cost_model is None else ["--speculative-dspark-cost-model", str(cost_model)]
    return [
        *plain_arguments(target, kv_tokens=kv_tokens, requests=requests),
        *("--speculative-algorithm", "DSPARK", "--speculative-draft-model-path", str(drafter)),
        *("--speculative-dspark-policy", policy, *costs),
    ]
