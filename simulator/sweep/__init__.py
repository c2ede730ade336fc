"""One executor for every sweep: order, retries, Ctrl-C and resumption.

- ``sweep``: what studies, the tuner and the planner call
- ``process_pool``: in local processes
- ``ray_pool``: on a Ray cluster
- ``journal``: finished results on disk
"""
