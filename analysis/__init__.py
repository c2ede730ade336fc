"""Pictures and reports of replays. Reads result folders; only a report simulates what it needs.

Read in this order:

- ``analysis.compare``: the command for one page, and which panels it has
- ``analysis.page``: heading, legend, footer around them
- ``analysis.panels``: what each panel draws
- ``analysis.series``: which lines there are, and what they are called
- ``analysis.replays``: result folders, checked, as numbers
- ``analysis.style``: one look for every page, and files that are the same bytes every time

``analysis.capacity`` is the command for the capacity report: ``simulator.capacity.study``
simulates, ``capacity_report`` concludes, ``capacity_words``, ``capacity_tables`` and
``capacity_figures`` (on ``capacity_sheet`` and ``capacity_panels``) say and show it,
``report_html`` and ``report_pdf`` set the pages.
"""

import sglang_dspark as sglang_dspark  # the short names of commands, and whose package is whose

__part_of__ = "sglang-dspark"
"""Says that this package is ours; the name is common, see ``sglang_dspark.own_names``."""
