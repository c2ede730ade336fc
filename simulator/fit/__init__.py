"""From a server's log to what replays it.

In order of import:

- ``acceptance``: what would have been accepted, from rounds that were cut short
- ``cost``: a cost model from logged step times
- ``logged_steps``: a step log as the two read it
- ``calibrate``: the command ``dspark calibrate``
"""
