"""The digital twin: a real server recorded on this machine, its replay beside it.

``simulator.twin`` replays and reports, and judges what one server recorded. In order of import:

- ``traffic``: starting SGLang, arrivals, and what the client saw
- ``recording``: which policies, loads and settings are served
- ``alone``: one policy recorded as an operator does, and judged by ``dspark twin``
- ``command``: ``python -m benchmarks.twin``
- ``low_load``: uniform against ragged steps at 1 to 8 clients
"""
