"""Reading and writing trace files: JSONL with a sidecar, strict and all-or-nothing.

Owns bytes, lines and digests, and the sentence for a line that does not decode. Knows nothing of
the laws between requests (``traces.columns``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from sglang_dspark.files import (
    atomic_write,
    did_you_mean,
    os_problem,
    read_record,
    refuse_replacing,
    unpacked,
    write_json,
)
from traces.columns import Trace, build_trace
from traces.schema import Request, TraceMeta, meta_path, trace_name

_DECODER = msgspec.json.Decoder(Request)
_FIELDS = Request.__struct_fields__
_REQUIRED = ("request_id", "arrival_s", "prompt_tokens", "output_tokens")


def shipped_traces() -> dict[str, Path]:
    """Name and file of the traces that come with this package."""
    folder = Path(__file__).parent
    return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}


def find_trace(name_or_path: str | Path) -> Path:
    """The file of a trace: what is at exactly this path, or else the shipped trace of this name.

    ``chat`` is the shipped one, unless the current directory holds a file called just ``chat``;
    a ``chat.jsonl`` or a folder ``chat`` there is another thing. ``ValueError`` that lists the
    shipped ones when it is neither.
    """
    path, shipped = Path(name_or_path), shipped_traces()
    if path.exists() and not (path.is_dir() and str(path) in shipped):
        return path
    if str(path) in shipped:
        return shipped[str(path)]
    names = ", ".join(shipped)
    if path.suffix or len(path.parts) != 1:
        raise ValueError(
            f"{path}: cannot read: No such file or directory; check the path, or name a shipped "
            f"trace: {names}"
        )
    hint = did_you_mean(str(path), shipped)
    raise ValueError(f"no trace {str(path)!r}; {hint}shipped: {names}; or give a .jsonl file")


def describe_shipped() -> list[dict[str, Any]]:
    """A row on each shipped trace, for ``dspark list``."""
    traces = {name: load_trace(name) for name in shipped_traces()}
    return [
        {
            "name": name,
            "requests": len(trace),
            "minutes": round(float(trace.arrival_s[-1]) / 60, 1),
            "mean_prompt_tokens": round(float(trace.prompt_tokens.mean())),
            "mean_output_tokens": round(float(trace.output_tokens.mean())),
            "domains": list(trace.domain_names),
        }
        for name, trace in traces.items()
    ]


def load_trace(name_or_path: str | Path) -> Trace:
    """The trace in a JSONL file, or a shipped one by its name.

    ``ValueError`` naming file, line, value and remedy otherwise.
    """
    path = find_trace(name_or_path)
    requests, lines, meta, sha256 = _read(path)
    return build_trace(
        requests,
        name=trace_name(path),
        path=str(path),
        sha256=sha256,
        block_tokens=meta.block_tokens if meta else None,
        where=lambda row: f"{path}:{lines[row]}",
    )


def read_requests(name_or_path: str | Path) -> tuple[list[Request], TraceMeta | None]:
    """The lines of a trace as records, with its sidecar; the laws between them go unchecked."""
    requests, _, meta, _ = _read(find_trace(name_or_path))
    return requests, meta


def write_trace(
    path: str | Path,
    requests: Sequence[Request],
    *,
    source: str,
    command: str,
    seed: int | None = None,
    block_tokens: int | None = None,
    statistics_from: list[str] | None = None,
    licence: str | None = None,
    notes: dict[str, int] | None = None,
    force: bool = True,
) -> Trace:
    """Write requests and sidecar, both or neither, and return the trace that ``load_trace`` reads.

    ``ValueError``, and no file, when the requests break a law of ``traces.columns``, or when
    another trace is there and ``force`` is false.
    """
    encode = msgspec.json.Encoder().encode
    data = b"".join(encode(request) + b"\n" for request in requests)
    meta = TraceMeta(
        source=source,
        command=command,
        seed=seed,
        sha256=hashlib.sha256(data).hexdigest(),
        block_tokens=block_tokens,
        statistics_from=statistics_from,
        licence=licence,
        notes=notes,
    )
    trace = build_trace(
        requests,
        name=trace_name(path),
        path=str(path),
        sha256=meta.sha256,
        block_tokens=block_tokens,
        where=lambda row: f"{path}: request {row + 1}",
    )
    refuse_replacing(path, data, force=force)
    with atomic_write(path, "wb") as file:
        file.write(data)
        # The digest pairs the two files: the trace is safe on disk before its sidecar appears.
        file.flush()
        os.fsync(file.fileno())
        write_json(meta_path(path), meta)
    return trace


def _read(path: Path) -> tuple[list[Request], list[int], TraceMeta | None, str]:
    try:
        data = unpacked(path, path.read_bytes())
    except OSError as error:
        raise os_problem("read", path, error) from None
    sha256 = hashlib.sha256(data).hexdigest()
    _check_text(path, data)
    decode = _DECODER.decode
    requests: list[Request] = []
    lines: list[int] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            requests.append(decode(line))
        except (msgspec.DecodeError, RecursionError) as error:
            if not line.strip():
                continue
            if not requests and _foreign(line):
                raise ValueError(
                    f"{path}:{number}: {_beginning(line)} begins no trace of this project; make "
                    f"one of the file: dspark traces convert {path} -o OUT.jsonl"
                ) from None
            raise ValueError(f"{path}:{number}: {_problem(line, str(error))}") from None
        lines.append(number)
    return requests, lines, _read_meta(path, sha256), sha256


def _read_meta(path: Path, sha256: str) -> TraceMeta | None:
    sidecar = meta_path(path)
    if not sidecar.exists():
        return None
    meta = read_record(sidecar, TraceMeta)
    if meta.sha256 != sha256:
        raise ValueError(
            f"{sidecar}: sha256 {meta.sha256[:12]}... is not that of {path.name} "
            f"({sha256[:12]}...); restore the file, or correct the sidecar if the edit was meant "
            "(python -m traces.cut takes a part, with a sidecar of its own)"
        )
    return meta


def _check_text(path: Path, data: bytes) -> None:
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError(
            f"{path}:1: begins with a byte order mark; save it as plain UTF-8, or make a trace of "
            f"it: dspark traces convert {path} -o OUT.jsonl"
        )
    if data.startswith((b"PAR1", b"ARROW1")):
        raise ValueError(
            f"{path}: is a Parquet or Arrow file; make a trace of it: dspark traces convert {path} "
            "-o OUT.jsonl"
        )
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ValueError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8"
        ) from None


def _foreign(line: bytes) -> bool:
    """Whether a first line is another format's: no JSON at all, or none of our required fields."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return not line.lstrip().startswith(b"{") or line.strip() == b"{"
    return not isinstance(record, dict) or not any(name in record for name in _REQUIRED)


def _beginning(line: bytes) -> str:
    """The beginning of a line, quoted."""
    text = line.decode().strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _problem(line: bytes, decoder_says: str) -> str:
    """Why a line is not a request: value, constraint, remedy."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also Python's limit on the digits of a number
        return f"not valid JSON ({decoder_says}); a trace holds one JSON object a line: mend it"
    if not isinstance(record, dict):
        return f"{shown(record)} is not a JSON object; a trace holds one object a line"
    for name in record:
        if name not in _FIELDS:
            return f"unknown field {name!r}; {hint(name, _FIELDS)}"
    for name in _REQUIRED:
        if name not in record:
            return f"no {name}; every request needs {', '.join(_REQUIRED)}"
    kinds = get_type_hints(Request, include_extras=True)
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} {value} is not a finite number; give a finite value"
        try:
            msgspec.convert(value, kinds[name])
        except msgspec.ValidationError as error:
            return f"{name} {shown(value)}: {str(error).split(' - at')[0]}; correct the value"
    return f"not a request ({decoder_says}); mend the line"


def shown(value: Any) -> str:
    """A JSON value, cut so that it fits a sentence."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hint(name: str, known: Iterable[str]) -> str:
    """The near miss of a name, or all names there are."""
    known = list(known)
    return did_you_mean(name, known).rstrip() or f"known: {', '.join(known)}"
