"""How many replicas hold a traffic; ``analysis.capacity`` draws what is found.

- ``busy``: a trace without its nights
- ``search``: the two searches
- ``misses``: who misses what
- ``choice``: which policy to run, by the tuner's verdict
- ``questions``: what a report asks, each with its simulations
- ``study``: all of them, in order
"""
