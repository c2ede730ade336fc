"""Replay of request traces under competing verification budgets, on SimPy and compiled kernels.

Read these five files and you know the project; then ``docs/design.md``:

1. ``sglang_dspark.core.state``: the two nouns, ``BatchState`` and ``VerifyPlan``
2. ``sglang_dspark.core.decide``: what a policy is
3. ``sglang_dspark.runtime.worker.worker``: draft, plan, verify, commit in a server
4. ``simulator.engine.kernel``: the same in the simulator
5. ``simulator.fleet.fleet``: time, SimPy's part

The rooms, in order of import:

- ``rng``: random numbers that have addresses
- ``slo``: service-level objectives by name
- ``acceptance``: what the target accepts and what the drafter believed
- ``engine``: one replica, all that is compiled
- ``fleet``: replicas behind a router, on SimPy's clock
- ``sweep``: one executor for many points, here or on a cluster
- ``study``: many simulations and the numbers and files they leave
- ``fit``: from a server's log to what replays it
- ``run``: the command ``dspark run``
- ``tune``: the command ``dspark tune``
- ``capacity``: how many replicas hold which traffic
- ``twin``: a recording and its replay, side by side
"""

import sglang_dspark as sglang_dspark  # the short names of commands, and whose package is whose

__part_of__ = "sglang-dspark"
"""Says that this package is ours; the name is common, see ``sglang_dspark.own_names``."""
