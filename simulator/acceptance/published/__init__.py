"""From the paper's figures to the shipped acceptance profiles; nothing here runs in a replay.

In order of import:

- ``targets``: the published figures and their file
- ``quadrature``: the figures that a process produces
- ``belief``: what a confidence head makes of it
- ``solve``: from figures to parameters
- ``fit``: the command, and what each profile says of its origins
"""
