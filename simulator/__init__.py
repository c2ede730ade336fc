"""Replay of request traces under competing verification budgets, on SimPy and compiled kernels.

Read these four files and you know the simulator:

- ``simulator.engine.kernel``: the replica's clock, admit -> plan -> step -> record
- ``simulator.engine.decode``: one decode step, draft -> plan -> verify -> commit
- ``simulator.fleet.fleet``: SimPy's part, windows of time in which replicas run by themselves
- ``simulator.study.metrics``: the numbers

Around them: ``scenario`` (inputs and outcome), ``config`` (engine settings), ``layout`` (the
records), ``prefill`` and ``kv_cache`` (SGLang's admission and memory), ``acceptance*`` and ``rng``
(what the target accepts and what the drafter believed), ``reference`` (the same law in plain
Python), ``laws`` (conservation), ``slo``, ``latency``. Of several replicas: ``fleet_config`` and
``pools`` (settings), ``stage`` (replicas behind one router), ``replica``, ``routing``,
``failures``, ``autoscale``, ``shedding``, ``disaggregation``. ``run``, ``run_config``, ``study``,
``report`` and ``results`` are the command ``python -m simulator.run``; ``capacity`` searches fleet
sizes and traffics, ``mistakes`` makes beliefs wrong, ``capacity_study`` asks what
``python -m analysis.capacity`` reports.
"""

import sglang_dspark as sglang_dspark  # the short names of commands, and whose package is whose

__part_of__ = "sglang-dspark"
"""Says that this package is ours; the name is common, see ``sglang_dspark.own_names``."""
