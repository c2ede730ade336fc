"""The tuner: a policy file, and whether to roll it out.

In order of import:

- ``bench``: trials in, judged windows out
- ``space``: where it looks
- ``search``: many candidates on few windows, the survivors on more
- ``guard``: what is known on held-out windows, and why not to roll out
- ``task``: what is tuned, from flags
- ``summary``: ``summary.json``
- ``report``: the table and the verdict
- ``command``: the command ``dspark tune``
"""
