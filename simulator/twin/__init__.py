"""A recording and its replay: how far to trust the simulator.

- ``replay``: what was recorded, replayed and measured the same way
- ``report``: predicted beside measured
"""
