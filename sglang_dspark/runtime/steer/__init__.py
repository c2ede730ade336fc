"""The steer lane: SGLang's built-in DSPARK (0.5.16 and later) under this project's budget policies.

- ``targets``: what of SGLang is hooked, and how each of it must look
- ``releases``: the same of releases that are only unpacked, and ``dspark check-sglang``
- ``agreement``: one decision on every tensor-parallel rank
- ``decision``: from SGLang's confidences to ``core.planner`` and back
- ``observe``: one ``StepRecord`` per verified step
- ``self_check``: a decision before the first request, compared with core's
- ``cpu``: what the built-in DSPARK lacks on a CPU
- ``hooks``: all of it hung into SGLang
"""
