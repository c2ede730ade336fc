"""Pictures of finished replays. Reads result folders; runs no simulation.

Read in this order:

- ``analysis.compare``: the command, and which panels a page has
- ``analysis.page``: heading, legend, footer around them
- ``analysis.panels``: what each panel draws
- ``analysis.series``: which lines there are, and what they are called
- ``analysis.replays``: result folders, checked, as numbers
- ``analysis.style``: one look for every page, and files that are the same bytes every time
"""
