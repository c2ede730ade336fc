"""Which format a file is in, told from the fields of its first records.

Owns the order in which formats are recognised, and the sentences for files that are known and hold
no requests: what would make a trace of them. Reads no request.
"""

from __future__ import annotations

import re
from typing import Any

from sglang_dspark.files import did_you_mean
from traces.importers.sources import Source

FORMATS = {
    "trace": "this project's own fields, JSONL or CSV",
    "mooncake": "Mooncake, AIPerf's mooncake_trace",
    "guidellm-trace": "GuideLLM's trace_synthetic",
    "bailian": "Alibaba's Bailian (Qwen)",
    "azure": "Azure 2023 to 2025",
    "burstgpt": "BurstGPT",
    "baseten": "Baseten",
    "copilot": "GitHub Copilot's agents",
    "weka": "WEKA, SemiAnalysis cc-traces",
    "dynamo": "Dynamo's request traces",
    "vidur": "Vidur",
    "servegen": "ServeGen",
    "guidellm": "a GuideLLM benchmark",
    "aiperf": "AIPerf's profile_export.jsonl",
    "bench": "SGLang's bench_serving, vLLM's bench serve",
    "log": "SGLang's JSON request log, OpenAI-style answers",
}
"""What ``--format`` takes, and what each is."""

_FIELDS = (
    ("trace", ("arrival_s", "prompt_tokens", "output_tokens")),
    ("baseten", ("timestamp_start_unix_ms",)),
    ("bailian", ("chat_id", "input_length")),
    ("azure", ("contexttokens", "generatedtokens")),
    ("azure", ("timestamp", "contexttokens")),
    ("burstgpt", ("request tokens", "response tokens")),
    ("vidur", ("num_prefill_tokens",)),
    ("servegen", ("timestamp_s", "input_tokens")),
    ("copilot", ("turns",)),
    ("guidellm", ("benchmarks",)),
    ("aiperf", ("metadata", "metrics")),
    ("bench", ("input_lens",)),
    ("bench", ("request_throughput",)),
    ("bench", ("output_throughput",)),
    ("mooncake", ("input_length",)),
    ("log", ("meta_info",)),
    ("log", ("usage",)),
    ("log", ("out",)),
    ("log", ("response",)),
    ("log", ("event",)),
)
_NO_REQUESTS = (
    (
        ("conditional_accept_rates", "marginal_accept_rates"),
        "is a drafter's speculation_profile: rates of acceptance and no requests, for --acceptance "
        "of dspark run; a trace needs when each request came and its token counts, as a server's "
        "request log has them",
    ),
    (
        ("conversations", "conversation"),
        "holds conversations as text, without times or token counts (ShareGPT, LMSYS); send them "
        "to a server and convert its log: --log-requests --log-requests-format json",
    ),
    (
        ("text_input", "messages", "prompt"),
        "holds text and no token counts; a trace needs the tokens of every prompt: write "
        "input_length and output_length into every row, or convert the log of the server that "
        "answered",
    ),
    (
        ("input_config", "request_latency"),
        "holds a benchmark's averages or its inputs; a trace needs each request: convert AIPerf's "
        "profile_export.jsonl",
    ),
    (
        ("schema_version", "provenance"),
        "is a cost model or a profile of this project, not a list of requests",
    ),
)
_ORDINARY = re.compile(r"Prefill batch|Decode batch|Finish: obj=|Receive: obj=")
_GUIDELLM_CSV = re.compile(r"^\W*(Run Info|Benchmark)\W.*(Timings|Request|Metrics|Server)", re.I)
_VLLM = re.compile(r"Avg prompt throughput|Engine \d+:|Received request")


def detect_format(source: Source) -> str:
    """The key of ``FORMATS``. ``ValueError`` saying what would make it a trace otherwise."""
    if _GUIDELLM_CSV.search(source.head().split("\n", 1)[0]):
        raise ValueError(
            f"{source.paths[0]}: looks like GuideLLM's CSV of averages; a trace needs each "
            "request: write the report as JSON (--output-path benchmarks.json) and convert that"
        )
    sample = source.sample()
    known = source.names() | {name for record in sample for name in record}
    if any(str(record.get("schema", "")).startswith("dynamo.") for record in sample):
        return "dynamo"
    if any("id" in record and _is_weka(record.get("requests")) for record in sample):
        return "weka"
    for kind, wanted in _FIELDS:
        if known.issuperset(wanted):
            return kind
    if not source.fold and any(name != name.lower() for name in known):
        source.fold = True
        return detect_format(source)
    path = source.paths[0]
    for names, sentence in _NO_REQUESTS:
        if known.intersection(names):
            raise ValueError(f"{path}: {sentence}")
    head = source.head()
    if not known:
        raise ValueError(f"{path}: {_without_records(head)}")
    raise ValueError(f"{path}: {_unknown(known)}")


def _is_weka(requests: Any) -> bool:
    return isinstance(requests, list) and any(
        isinstance(one, dict) and ("in" in one or one.get("type") == "subagent") for one in requests
    )


def _without_records(head: str) -> str:
    """Why there is nothing to read in a text without records."""
    first = head.strip().split("\n", 1)[0]
    if _ORDINARY.search(head):
        return (
            "is an ordinary SGLang server log, which tells batches and no requests; run the server "
            "with --log-requests --log-requests-format json and convert that log"
        )
    if _VLLM.search(head):
        return (
            "is an ordinary vLLM server log, which has no token counts of its requests; convert "
            "what vllm bench serve --save-result --save-detailed writes, or saved answers with "
            "their usage"
        )
    return (
        f"{first[:60]!r} begins no known format; it must be JSON lines, a JSON list, CSV with a "
        f"header or Parquet; --format takes {', '.join(FORMATS)}"
    )


def _unknown(known: set[str]) -> str:
    """Which fields there are, and how to say what they mean."""
    shown = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
    near = next(
        (
            f"; {hint.rstrip()}"
            for name in sorted(known)
            for hint in [did_you_mean(name, ("timestamp", "input_length", "output_length"))]
            if hint
        ),
        "",
    )
    return (
        f"no known format has the fields {shown}{near}; if these are requests, say which field is "
        "which: --columns timestamp=NAME,input_length=NAME,output_length=NAME"
    )
