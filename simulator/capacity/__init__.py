"""How many replicas hold a traffic; ``analysis.capacity`` draws what is found.

- ``search``: the two searches
- ``study``: the questions behind a report, and their simulations
"""
