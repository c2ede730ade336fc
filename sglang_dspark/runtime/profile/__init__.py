"""Measures a running server's step costs into a cost model. Imports no SGLang.

- ``lanes``: how decode steps are pinned and read
- ``shapes``: what a ragged forward costs beside a uniform one
- ``fit``: from points to a cost model, and what makes it untrustworthy
- ``grid``: which points there are, and the journal of those done
- ``nvml``: what this machine says of its GPUs
- ``model``: the cost-model file with its provenance
- ``command``: the order of things
"""
