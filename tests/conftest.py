"""One thread per process: the kernels are single-threaded and two cores are all CI has."""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
