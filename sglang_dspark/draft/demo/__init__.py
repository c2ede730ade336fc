"""The laptop run: every stage on a tiny model, and the paper's claims beside it.

- ``recipe``: sizes and stages
- ``runner``: stages once, in their order of need
- ``claims``: what the paper says, what was measured
- ``command``: the command, and the cached checkpoints for tests
"""
