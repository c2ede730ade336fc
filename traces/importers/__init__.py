"""Public traces and server logs, read into ``traces.schema.Request``.

One file per source; each has a ``read_*`` function from a path to ``imported.Imported``. What they
share is in ``imported`` (the result, rows as CSV or JSON) and ``arrivals`` (times that a
source lacks or rounds). ``traces.convert`` chooses among them.
"""
