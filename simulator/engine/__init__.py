"""One simulated replica as SGLang schedules it: all that is compiled, and nothing above it.

In order of import:

- ``layout``: the records, one per request, cached block and step
- ``config``: settings, SGLang's names and defaults
- ``kv_cache``: pages and the prefix cache
- ``latency``: inter-token latency in narrow bins
- ``lifecycle``: what becomes of a request: waiting, running, finished, handed over
- ``ended``: planning beside requests that ended in the last step
- ``prefill``: admission and prefill
- ``decode``: one decode step, draft -> plan -> verify -> commit
- ``kernel``: the replica's clock, admit -> plan -> step -> record
- ``laws``: conservation, counted again
"""
