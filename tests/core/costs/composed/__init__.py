"""Cost models composed of operators: laws of the composition, what was published, bad input."""
