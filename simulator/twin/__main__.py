"""``python -m simulator.twin``."""

from simulator.twin.command import main

raise SystemExit(main())
