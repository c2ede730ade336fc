"""What the target would accept of a draft, and what the drafter believed of it.

In order of import:

- ``tables``: the law and its compiled draw
- ``profile``: the fitted kind, a JSON file of parameters
- ``speculation``: Model-Optimizer's rates, as a fitted one
- ``recorded``: the empirical kind, a log of rounds
- ``load``: either by name or path
- ``whose``: the profile that a cost model names as its own, and what is said of another
- ``published``: what makes the shipped ``profiles`` from published figures
"""
