"""Every published serving result that can be replayed, predicted under three protocols.

In order of import:

- ``records``: what a record holds, read from ``records/*.json``
- ``protocols``: what of a record is known under each protocol, and what is predicted
- ``score``: errors, coverage and order, over points, records and all
- ``page``: the tables of ``docs/validation.md``
- ``command``: ``python -m benchmarks.zoo``
"""
