"""Pictures and reports of replays. Reads result folders; only a report simulates what it needs.

In order of import:

- ``style``: one look for every page, and files that are the same bytes every time
- ``replays``: result folders, checked, as numbers
- ``series``: which lines there are, and what they are called
- ``page``: heading, legend, footer
- ``panels``: what each panel draws
- ``compare``: the command ``dspark compare``, and which panels its page has
- ``capacity``: the capacity report
"""

import sglang_dspark as sglang_dspark  # the short names of commands, and whose package is whose

__part_of__ = "sglang-dspark"
"""Says that this package is ours; the name is common, see ``sglang_dspark.own_names``."""
