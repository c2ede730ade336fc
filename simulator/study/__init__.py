"""Many simulations, and the numbers, tables and files they leave.

In order of import:

- ``part``: the parts of a run that figures are read from
- ``metrics``: the formulas of ``docs/metrics.md``
- ``place``: the folder of a run's results, and its lock
- ``results``: the result folder
- ``study``: a list of runs, rows in the order asked for
- ``first_start``: the kernel is there before anything begins
- ``verdict``: what a comparison comes to
- ``price_doubt``: what the doubt about prices does to a comparison
- ``launch``: a command that starts SGLang, read
- ``server``: what a server tells of itself, as engine settings
- ``config``: what ``dspark run`` runs
- ``report``: the table a person reads
- ``windows``: a trace in windows, and what one is worth
"""
