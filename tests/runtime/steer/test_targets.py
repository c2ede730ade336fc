"""Hook targets: a process without one, or with a changed one, is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dspark.runtime.steer import targets


@pytest.mark.example
def test_a_process_without_a_target_is_refused() -> None:
    def resolve(path: str) -> Any:
        raise AttributeError("no such thing")

    with pytest.raises(ValueError, match=r"SGLang has no .*; install sglang==0\.5\.21"):
        targets.check(resolve)


@pytest.mark.example
def test_a_process_with_another_signature_is_refused() -> None:
    def resolve(path: str) -> Any:
        return SimpleNamespace if path.endswith("Decision") else lambda self, *, other: None

    with pytest.raises(ValueError, match="takes no draft_model"):
        targets.check(resolve)
