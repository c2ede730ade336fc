"""DSpark inside SGLang; the only package that imports sglang.

``plugin`` is what SGLang loads; ``worker`` serves releases without a built-in DSPARK. ``records``,
``step_log`` and ``metrics`` say what a server decided and what came of it.
"""
