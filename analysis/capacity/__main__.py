"""``python -m analysis.capacity``."""

from analysis.capacity.command import main

raise SystemExit(main())
