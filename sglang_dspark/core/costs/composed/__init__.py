"""Cost models composed of operators that were timed one by one: no GPU, no server, no fit to a
whole step.

In order of import:

- ``gpus``: the GPUs by name, as their data sheets state them
- ``targets``: the models by name or ``config.json``, and how they are spread over GPUs
- ``assumed``: the seconds of what no table holds, from a data sheet
- ``package``: aiconfigurator-core, whose tables they are, and a model compiled by it
- ``sizes``: bytes of weights and of keys and values
- ``operators``: the operators of one model with their measured seconds
- ``step``: a verify step of R requests and M tokens as bias + alpha(R) + theta(M) + context
- ``drafting``: one block of a drafter's tokens
- ``prefill``: prompts as base + token + pair
- ``parts``: what no table knows: host, graph tiers, memory, power, whose drafter
- ``model``: all of it as a cost model
- ``command``: ``dspark prices build``
"""
