"""``python -m benchmarks.zoo``."""

from benchmarks.zoo.command import main

raise SystemExit(main())
