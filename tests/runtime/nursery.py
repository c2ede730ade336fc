"""A warm process that forks SGLang servers: imports are paid once per test session.

Run as a script, by ``servers.Nursery``. Reads one JSON command per line on standard input and
answers with one JSON line on standard output:

    {"do": "start", "arguments": [...], "environment": {...}, "folder": F, "patch": "module:name"}
    {"do": "status", "pid": P}        -> {"exit": null | code}
    {"do": "stop", "pid": P}          -> {"exit": code}

A started server is exactly what ``python -m sglang.launch_server ARGUMENTS`` runs, except that its
processes are forked where SGLang would spawn them, and that ``patch`` may be called first: tests
break the product with it. When standard input ends, so does everything started here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from typing import Any

from benchmarks.servers import unneeded_models

_MODELS = {"qwen3", "qwen2", "registry", "utils", "transformers"}
"""Modules of SGLang's model folder that the servers here need; the others take 20 s to import."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

_ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""


def _warm_up() -> None:
    """Import all that a server will, with our plugin in place."""
    warnings.simplefilter("ignore")
    os.environ["SGLANG_DISABLED_MODEL_ARCHS"] = unneeded_models(_MODELS)
    from sglang.srt.utils.common import suppress_noisy_warnings

    suppress_noisy_warnings()
    for name in (
        "sglang.launch_server",
        "sglang.srt.entrypoints.http_server",
        "sglang.srt.managers.scheduler",
        "sglang.srt.models.registry",
        "sglang.srt.layers.attention.torch_native_backend",
    ):
        importlib.import_module(name)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    for name in ("worker", "algorithm"):
        try:
            importlib.import_module(f"sglang_dspark.runtime.worker.{name}")
        except ImportError as error:
            print(f"not warmed: {error}", file=sys.stderr)


def _serve(arguments: list[str], environment: dict[str, str], folder: str, patch: str) -> None:
    """Become a server; never returns."""
    os.setsid()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.SIG_DFL)
    ctypes.CDLL("libc.so.6").prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    log = os.open(f"{folder}/server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(folder)
    metrics = f"{folder}/metrics"
    os.mkdir(metrics)
    os.environ.update(environment, TMPDIR=folder, PROMETHEUS_MULTIPROC_DIR=metrics)
    tempfile.tempdir = None
    random.seed()
    values = sys.modules.get("prometheus_client.values")
    if values is not None:
        # Decided at import, when there was no folder yet.
        values.ValueClass = values.get_value_class()  # type: ignore[attr-defined]
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_, **__: None
    sys.argv = ["sglang.launch_server", *arguments]
    if patch:
        module, name = patch.split(":")
        getattr(importlib.import_module(module), name)()
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(prepare_server_args(arguments))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _start(command: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _serve(
            command["arguments"],
            command["environment"],
            command["folder"],
            command.get("patch", ""),
        )
        code = 0
    except SystemExit as stop:
        # As the interpreter ends a process: a sentence is printed and means 1.
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        else:
            code = int(stop.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Children:
    """The servers that were started, by process id, with the exit code of those that ended."""

    def __init__(self) -> None:
        self.codes: dict[int, int | None] = {}

    def status(self, pid: int) -> int | None:
        """Exit code of a server that ended; whatever it left behind is killed."""
        if self.codes[pid] is None:
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, pid, how) is not None:
                self._end(pid)
        return self.codes[pid]

    def stop(self, pid: int) -> int | None:
        """Kill the server's whole session; its processes have no other group."""
        if self.codes[pid] is None:
            self._end(pid)
        return self.codes[pid]

    def _end(self, pid: int) -> None:
        # Until the root is reaped its number cannot become anybody else's group. Between fork and
        # setsid there is no such group yet; after a crash there is no process.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        self.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        # Its orphans have become this process's children.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-pid, 0)


def main() -> None:
    """Warm up, say so, then obey until standard input ends."""
    commands = os.fdopen(os.dup(0), "r")
    replies = os.fdopen(os.dup(1), "w")
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL("libc.so.6")
    libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    libc.prctl(_ADOPT_ORPHANS, 1)

    def say(reply: dict[str, Any]) -> None:
        print(json.dumps(reply), file=replies, flush=True)

    start_s = time.monotonic()
    _warm_up()
    gc.collect()
    gc.freeze()
    say({"warm_s": time.monotonic() - start_s})
    children = _Children()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for line in commands:
            command = json.loads(line)
            if command["do"] == "start":
                pid = _start(command)
                children.codes[pid] = None
                say({"pid": pid})
            elif command["do"] == "status":
                say({"exit": children.status(command["pid"])})
            else:
                say({"exit": children.stop(command["pid"])})
    finally:
        for pid in children.codes:
            children.stop(pid)


if __name__ == "__main__":
    main()
