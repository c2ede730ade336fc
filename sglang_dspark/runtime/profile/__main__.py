"""``python -m sglang_dspark.runtime.profile``."""

from sglang_dspark.commands import run

raise SystemExit(run("profile"))
