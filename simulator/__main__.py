"""``python -m simulator``: the commands in here."""

from sglang_dspark.commands import holds

raise SystemExit(holds("simulator"))
