"""What is done to servers that record their requests, before they start."""

from __future__ import annotations

import contextlib
import errno
from typing import Any


def quick_request_log() -> None:
    """Parts of the request log become visible after a fraction of a second."""
    from sglang_dspark.runtime.request_log import RequestLog

    assert RequestLog.__init__.__kwdefaults__ is not None
    RequestLog.__init__.__kwdefaults__["interval_s"] = 0.3


def quick_logs() -> None:
    """The same of both logs."""
    from sglang_dspark.logs.step_log import StepLog

    quick_request_log()
    assert StepLog.__init__.__kwdefaults__ is not None
    StepLog.__init__.__kwdefaults__["interval_s"] = 0.3


def full_disk() -> None:
    """No part of a log can be written."""
    from sglang_dspark.logs import writer as part_writer

    quick_request_log()

    @contextlib.contextmanager
    def refuse(path: Any, mode: str = "w") -> Any:
        raise ValueError(f"{path}: cannot write: {errno.errorcode[errno.ENOSPC]}")
        yield

    part_writer.atomic_write = refuse  # type: ignore[attr-defined]


def broken_hooks() -> None:
    """A server whose messages are not what the log expects."""
    from sglang_dspark.runtime.request_log import RequestRecorder

    def fail(*args: Any) -> None:
        raise AttributeError("no such field")

    RequestRecorder._tokens = fail  # type: ignore[method-assign, assignment]
