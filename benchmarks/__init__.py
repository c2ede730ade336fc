"""The commands behind every number in ``docs/measured.md`` and ``docs/validation.md``.

Run as ``python -m benchmarks.NAME`` from a checkout; results, with commit and hardware, are in
``results/``.

- ``provenance``: what every result says of its making
- ``apart``: one measured case in a process of its own
- ``servers``: SGLang servers on this machine, for benchmarks and tests
- ``first_start``: import, and compiling into an empty cache
- ``replay_speed``: requests per CPU-second
- ``fleet_speed``: a fleet of 64 replicas
- ``peers``: the whole command beside another simulator's
- ``policy_speed``: how long a budget decision takes
- ``step_log_cost``: what watching a step costs a server
- ``recorder_cost``: what recording requests costs it
- ``steer_overhead``: a steered decision beside SGLang's own
- ``serving_soak``: long serving, impatience and nonsense included
- ``deciding``: what deciding costs, and from which load on it pays
- ``goodput_regret``: what ``goodput`` wins and loses
- ``one_verdict``: whether tuner and capacity report say the same
- ``readme_figure``: the README's figure
- ``make_composed_models``: the shipped cost models that are composed of operators
- ``make_cost_models``: the other shipped cost models
- ``validation``: predictions beside published measurements, and their page
- ``zoo``: every published record that can be replayed, under three protocols
- ``twin``: the simulator beside a real server
- ``shard_memory``: what a process holds of the optimiser, as there are more
- ``v4_pair``: a DeepSeek-V4 pair from nothing: its gain, and exactness
- ``compiled``: the Triton kernels as machine code, and the bytes that they move
- ``round_audit``: launches, waits and allocations of a round of the worker lane
- ``gpu``: what needs a GPU; ``gpu.sh`` runs it
"""
