"""Public traces and server logs, read into ``traces.schema.Request``.

Each source has a ``read_*`` function from a path to ``imported.Imported``; ``traces.convert``
chooses among them.

- ``imported``: the result, and source files as rows with line numbers
- ``arrivals``: times that a source lacks or rounds
- ``mooncake``: JSONL with block hashes
- ``tables``: CSV of Azure, Vidur and ServeGen
- ``request_log``: requests that a server answered
"""
