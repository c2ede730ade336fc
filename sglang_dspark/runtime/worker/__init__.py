"""The worker lane: this project's own DSPARK on an SGLang release that has none.

Read ``worker`` first: ``draft -> plan -> verify -> commit``.
"""
