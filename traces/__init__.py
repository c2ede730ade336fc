"""Request traces: what arrived when, how long it was, and which prefixes it shared.

Read ``schema``, ``columns`` and ``store`` first. In order of import:

- ``schema``: one request, one sidecar
- ``columns``: ``Trace``, the columns that a replay reads, and the laws they obey
- ``store``: ``load_trace``, ``write_trace``
- ``measured``: what was measured of a recorded trace's requests, beside it
- ``mixture``: the file that a synthetic trace is made of
- ``draws``: draws that come out the same on every machine
- ``sessions``: conversations laid over arrivals and lengths
- ``synthesize``: the command ``dspark traces synthesize``
- ``importers``: public traces and server logs, one file per source
- ``exported``: what an exported file cannot say of itself, beside it
- ``convert``: the command ``dspark traces convert``
- ``superpose``: more users, and traces side by side
- ``export``: the command ``dspark traces export``
- ``cut``: the command ``dspark traces cut``
- ``statistics``: rates, burstiness, lengths, prefix reuse
- ``picture``: the same drawn
- ``describe``: the command ``dspark traces describe``
- ``pulling``: one look at a running server, and what comes of it on disk
- ``recorded``: from a request log to a trace
- ``record``: the command ``dspark traces record``

Shipped beside them: ``chat.jsonl``, ``code.jsonl``, ``math.jsonl``, ``mixed.jsonl``, made by
``synthesize`` from ``mixtures/``; each sidecar holds the command.
"""

import sglang_dspark as sglang_dspark  # before the rest: whose package is whose
from traces.columns import Trace, build_trace
from traces.schema import Request, TraceMeta, meta_path
from traces.store import find_trace, load_trace, read_requests, shipped_traces, write_trace

__all__ = [
    "Request",
    "Trace",
    "TraceMeta",
    "build_trace",
    "find_trace",
    "load_trace",
    "meta_path",
    "read_requests",
    "shipped_traces",
    "write_trace",
]

__part_of__ = "sglang-dspark"
"""Says that this package is ours; the name is common, see ``sglang_dspark.own_names``."""
