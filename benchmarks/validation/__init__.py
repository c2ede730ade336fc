"""Predictions beside published measurements, and the page that shows them.

In order of import:

- ``record``: ``validation.json`` as a page reads it
- ``scenes``: traces, cost models and steady states that studies replay
- ``transfer``: what vLLM's frontier needs and nobody published
- ``vllm``: study 1, vLLM's frontier
- ``paper``: study 2, the paper's Figures 7 and 8
- ``basics``: studies 3 to 5, queueing theory, the twin, acceptance
- ``command``: ``python -m benchmarks.validation``
- ``page_tables``: the tables of ``docs/validation.md``
- ``page_panels``: the nine panels
- ``page``: the command that draws and writes
"""
