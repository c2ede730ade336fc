"""Replicas behind routers on SimPy's clock: what arrives, where it goes, who serves it.

In order of import:

- ``config``: the key ``fleet`` of a configuration file
- ``pools``: replicas with every default filled in
- ``judged``: which requests are judged
- ``scenario``: what a simulation depends on and what it leaves
- ``replica``: one replica on the host's side
- ``routing``: which replica a router chooses
- ``shedding``: whom it refuses
- ``turns``: turns of sessions that wait for answers
- ``stage``: replicas behind one router, and their phases
- ``autoscale``: how many there should be
- ``disaggregation``: when KV has reached the other replica
- ``failures``: when a replica fails, and what a request is then
- ``fleet``: ``simulate``, windows of time in which replicas run by themselves
- ``mistakes``: beliefs that are wrong on purpose
"""
