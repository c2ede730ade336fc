"""The worker lane: this project's own DSPARK on an SGLang release that has none.

Read ``worker`` first, ``draft -> plan -> verify -> commit``; the rest in order of import:

- ``sampling``: from the target's logits to committed tokens
- ``cpu``: what SGLang lacks on a CPU
- ``draft_layers``: the drafter's layers from SGLang's parallel parts
- ``draft_model``: the drafter as SGLang loads and runs it
- ``forwards``: draft, uniform verify, ragged verify
- ``urgency``: priorities, and how far requests are ahead of their SLO
- ``planning``: confidence history in, ``VerifyPlan`` out
- ``control``: what a measurement may ask of a running server
- ``assembly``: planner, step log and metrics from the server's settings
- ``warm_up``: compiles what a round needs before the first one
- ``clock``: times the parts of a round
- ``draft_input``: what one step hands to the next
- ``worker``: a round
- ``algorithm``: the name, the relay and the hooks that make it known to SGLang
"""
