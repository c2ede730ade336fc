"""From benchmarks of a server to a cost model that shows them, and how far it may still be off.

In order of import:

- ``points``: one benchmark run: load, workload, and what was measured
- ``bench_files``: files of SGLang, vLLM and GuideLLM, and a CSV, as points
- ``accepted``: an acceptance profile brought to a stated length
- ``prior``: what a cost model deserves to be doubted before anything is measured
- ``asked``: a point as a simulation
- ``replays``: a point replayed, and where its seconds went
- ``posterior``: the changes of the prices that points ask for, and what doubt is left
- ``words``: what was found, for people
- ``command``: ``dspark prices calibrate``
"""
