"""One thread per process: the kernels are single-threaded and two cores are all CI has.

Hypothesis has no deadline: the first example of a test may compile for seconds.
"""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings  # after the threads are settled

settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")
