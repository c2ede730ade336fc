"""``python -m sglang_dspark``: the same as ``dspark``."""

from sglang_dspark.commands import main

raise SystemExit(main())
