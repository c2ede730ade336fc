"""``python -m simulator.tune``."""

from simulator.tune.command import main

raise SystemExit(main())
