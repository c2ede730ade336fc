"""Drafters that others made, and ours for others: what a checkpoint is, and in which convention.

- ``suspicions``: signs that a checkpoint was never trained or is not what it says
- ``loaders``: who loads it
- ``inspect``: the command that tells all of it
- ``convert``: the command that writes it in another convention
"""
