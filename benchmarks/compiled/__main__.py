"""``python -m benchmarks.compiled``."""

import sys

from benchmarks.compiled.command import main

sys.exit(main())
