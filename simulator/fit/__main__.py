"""``python -m simulator.fit``."""

from simulator.fit.calibrate import main

raise SystemExit(main())
