"""Request traces: what arrived when, how long it was, and which prefixes it shared.

Read in this order:

- ``traces.schema``: one request, one sidecar
- ``traces.columns``: ``Trace``, the columns that a replay reads, and the laws they obey
- ``traces.store``: ``load_trace``, of a file or of a shipped name, and ``write_trace``

Commands:

- ``python -m traces.convert``: public traces and server logs into this schema
- ``python -m traces.record``: a running server's requests and steps, and a trace of them
- ``python -m traces.synthesize``: a trace from a mixture file
- ``python -m traces.describe``: rates, burstiness, lengths and prefix reuse, as table and picture

Shipped beside this file: ``chat.jsonl``, ``code.jsonl``, ``math.jsonl``, ``mixed.jsonl``, made by
``traces.synthesize`` from ``mixtures/``; each sidecar holds the command.
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
