"""Hypothesis without a deadline: the first example of a test may compile for seconds."""

from hypothesis import settings

settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")
