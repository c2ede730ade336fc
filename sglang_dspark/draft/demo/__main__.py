"""``python -m sglang_dspark.draft.demo``."""

from sglang_dspark.commands import run

raise SystemExit(run("draft demo"))
