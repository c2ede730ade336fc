"""From the target's logits to committed tokens, for every row of a ragged step.

In order of import:

- ``rows``: where a request's rows lie
- ``filters``: top-k, top-p and min-p, each row with its own
- ``grammar``: which tokens a grammar allows at every row
- ``penalties``: what a request has generated counts against it
- ``seeds``: the tokens of SGLang's seeded sampler
- ``draw``: all of it in SGLang's order, then acceptance
"""
