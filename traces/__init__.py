"""Request traces: what arrived when, how long it was, and which prefixes it shared.

Read ``schema``, ``columns`` and ``store`` first. In order of import:

- ``schema``: one request, one sidecar
- ``columns``: ``Trace``, the columns that a replay reads, and the laws they obey
- ``store``: ``load_trace``, ``write_trace``
- ``mixture``: the file that a synthetic trace is made of
- ``draws``: draws that come out the same on every machine
- ``sessions``: conversations laid over arrivals and lengths
- ``synthesize``: the command ``dspark traces synthesize``
- ``importers``: public traces and server logs, one file per source
- ``convert``: the command ``dspark traces convert``
- ``statistics``: rates, burstiness, lengths, prefix reuse
- ``picture``: the same drawn
- ``describe``: the command ``dspark traces describe``
- ``pulling``: one look at a running server, and what comes of it on disk
- ``recorded``: from a request log to a trace
- ``record``: the command ``dspark traces record``

Shipped beside them: ``chat.jsonl``, ``code.jsonl``, ``math.jsonl``, ``mixed.jsonl``, made by
``synthesize`` from ``mixtures/``; each sidecar holds the command.
"""

from traces.columns import Trace, build_trace
from traces.schema import Request, TraceMeta, meta_path
from traces.store import load_trace, read_requests, write_trace

__all__ = [
    "Request",
    "Trace",
    "TraceMeta",
    "build_trace",
    "load_trace",
    "meta_path",
    "read_requests",
    "write_trace",
]
