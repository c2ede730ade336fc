"""DSpark inside SGLang; the only package that imports sglang.

``plugin`` is what SGLang loads: ``worker`` serves a release without a built-in DSPARK, ``steer``
plans for the built-in one of later releases. ``records``, ``step_log``, ``request_log`` and
``metrics`` say what a server was asked, what it decided and what came of it; ``profile`` measures
what its steps cost.
"""
