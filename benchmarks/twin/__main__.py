"""``python -m benchmarks.twin``."""

from benchmarks.twin.command import main

raise SystemExit(main())
