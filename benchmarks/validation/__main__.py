"""``python -m benchmarks.validation``."""

from benchmarks.validation.command import main

raise SystemExit(main())
