"""A recording and its replay: how far to trust the simulator.

In order of import:

- ``timings``: what a client saw, and the figures that are compared
- ``speed``: the machine's speed beside the fitted one
- ``outside``: the seconds of a first token that no step explains
- ``replay``: what was recorded, replayed and measured the same way
- ``report``: predicted beside measured, for several policies and loads
- ``prefixes``: which prompts shared how much
- ``recording``: what ``dspark traces record`` left
- ``judge``: the first part fitted, the rest compared
- ``words``: what the command says
- ``command``: the command ``dspark twin``
"""
