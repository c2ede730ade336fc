"""The digital twin: a real server recorded on this machine, its replay beside it.

``simulator.twin`` replays and reports. In order of import:

- ``traffic``: starting SGLang, arrivals, and what the client saw
- ``recording``: which policies, loads and settings are served
- ``command``: ``python -m benchmarks.twin``
"""
