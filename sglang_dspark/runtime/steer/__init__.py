"""The steer lane: SGLang's built-in DSPARK (0.5.16 and later) under this project's budget policies.

- ``targets``: what of SGLang is hooked, and how each of it must look
- ``decision``: from SGLang's confidences to ``core.Planner`` and back
- ``observe``: one ``StepRecord`` per verified step
- ``hooks``: all of it hung into SGLang
- ``cpu``: what the built-in DSPARK lacks on a CPU
"""
