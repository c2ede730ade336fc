"""From a server's log to what replays it.

In order of import:

- ``acceptance``: what would have been accepted, from rounds that were cut short
- ``prefill``: what prompts cost, how sure that is, and what the log cannot tell of it
- ``cost``: a cost model from logged step times
- ``served``: what is known of a request beside its steps
- ``gaps``: times of steps, and of the gaps in which prompts ran
- ``logged_steps``: a step log as the fits read it
- ``calibrate``: the command ``dspark calibrate``
- ``bench``: benchmarks of a server, and the cost model that shows them
- ``from_server``: the command ``dspark prices from-server``
"""
