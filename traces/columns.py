"""A trace as columns, in arrival order, and the laws that its requests obey.

Owns ``Trace`` and the checks across fields and lines. Knows nothing of files: ``traces.store``
tells it how to name a request in an error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.schema import Request

MAX_TOKENS = 2**31 - 1  # beyond any context window; keeps sums of a whole trace far inside int64

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Where = Callable[[int], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """N requests in arrival order, one array per field.

    Text fields are codes into their ``*_names``, -1 where a request gives none.
    """

    name: str
    """File name without its suffix."""
    path: str
    """Where it was read from."""
    sha256: str
    """Digest of the file's bytes."""
    request_id: list[str]
    """[N] unique names."""
    arrival_s: Floats
    """[N] seconds, non-decreasing; the first may be above 0."""
    prompt_tokens: Ints
    """[N] at least 1."""
    output_tokens: Ints
    """[N] at least 1."""
    domain: Codes
    """[N] codes into ``domain_names``."""
    domain_names: tuple[str, ...]
    """Domains in order of first appearance."""
    session: Ints
    """[N] conversation numbers 0.., -1 for a request outside any."""
    delay_s: Floats
    """[N] seconds from the answer to the session's request before it; NaN where not given."""
    temperature: Floats
    """[N] NaN where not given."""
    priority: Ints
    """[N] 0 where not given."""
    max_new_tokens: Ints
    """[N] 0 where not given."""
    slo: Codes
    """[N] codes into ``slo_names``."""
    slo_names: tuple[str, ...]
    """SLO classes in order of first appearance."""
    prefix_offsets: Ints
    """[N + 1] request i holds ``prefix_blocks[prefix_offsets[i]:prefix_offsets[i + 1]]``."""
    prefix_blocks: Ints
    """Block numbers 0..n_blocks-1 in order of first appearance; equal number, equal prefix."""
    n_blocks: int
    """Different blocks in the trace."""
    block_tokens: int
    """Tokens per block; 0 when the trace has no hashes."""

    def __len__(self) -> int:
        return len(self.request_id)

    @functools.cached_property
    def follows(self) -> Ints:
        """[N] the request whose answer a request waits for, -1 where it waits for none."""
        order = np.argsort(self.session, kind="stable")
        before = np.full(len(self), -1, dtype=np.int64)
        same = np.diff(self.session[order]) == 0
        before[order[1:][same]] = order[:-1][same]
        before[(self.session < 0) | np.isnan(self.delay_s)] = -1
        return before

    def head(self, n: int) -> Trace:
        """The first ``n`` requests; names and block numbers keep their codes."""
        if n < 1:
            raise ValueError(f"{self.path}: head of {n} requests; ask for at least 1")
        return self.part(0, n)

    def part(self, first: int, end: int) -> Trace:
        """Requests ``first`` to ``end`` - 1; names and block numbers keep their codes."""
        end = min(end, len(self))
        if not 0 <= first < end:
            raise ValueError(f"{self.path}: no requests from {first} to {end}; ask for at least 1")
        offsets = self.prefix_offsets[first : end + 1]
        kept: dict[str, Any] = {"prefix_offsets": offsets - offsets[0]}
        for name in _PER_REQUEST:
            kept[name] = getattr(self, name)[first:end]
        blocks = self.prefix_blocks[int(offsets[0]) : int(offsets[-1])]
        return replace(self, prefix_blocks=blocks, **kept)

    def scaled(self, *, rate_factor: float) -> Trace:
        """The same requests arriving ``rate_factor`` times as fast."""
        if not 0 < rate_factor < float("inf"):
            raise ValueError(f"{self.path}: rate factor {rate_factor}; give a number above 0")
        return replace(self, arrival_s=self.arrival_s / rate_factor)


_PER_REQUEST = (
    "request_id",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "domain",
    "session",
    "delay_s",
    "temperature",
    "priority",
    "max_new_tokens",
    "slo",
)


def build_trace(
    requests: Sequence[Request],
    *,
    name: str,
    path: str,
    sha256: str,
    block_tokens: int | None,
    where: Where,
) -> Trace:
    """The columns of ``requests``. ``ValueError`` naming ``where(i)`` for the first broken law."""
    if not requests:
        raise ValueError(f"{path}: holds no request; a trace needs at least one line")
    rows = range(len(requests))
    arrival_s = np.array([r.arrival_s for r in requests], dtype=np.float64)
    _check(
        "arrival_s", arrival_s, ~(np.isfinite(arrival_s) & (arrival_s >= 0)), where,
        "a finite number of seconds, 0 or more",
    )  # fmt: skip
    _check_sorted(arrival_s, where)
    prompt_tokens = _tokens("prompt_tokens", (r.prompt_tokens for r in requests), where)
    output_tokens = _tokens("output_tokens", (r.output_tokens for r in requests), where)
    request_id = [r.request_id for r in requests]
    _check_unique(request_id, where)
    temperature = np.array(
        [np.nan if r.temperature is None else r.temperature for r in requests], dtype=np.float64
    )
    given = np.array([r.temperature is not None for r in requests])
    _check(
        "temperature", temperature, given & ~(np.isfinite(temperature) & (temperature >= 0)), where,
        "a finite number, 0 or more",
    )  # fmt: skip
    domain, domain_names = _codes(r.domain for r in requests)
    slo, slo_names = _codes(r.slo for r in requests)
    session, _ = _codes(r.session_id for r in requests)
    delay_s = _delays(requests, session, where)
    prefix = [r.prefix_hashes or () for r in requests]
    offsets = np.zeros(len(requests) + 1, dtype=np.int64)
    np.cumsum([len(hashes) for hashes in prefix], out=offsets[1:])
    dense: dict[int | str, int] = {}
    blocks = np.array(
        [dense.setdefault(h, len(dense)) for i in rows for h in prefix[i]], dtype=np.int64
    )
    if len(blocks):
        if block_tokens is None:
            first = int(np.argmax(np.diff(offsets) > 0))
            raise ValueError(
                f"{where(first)}: prefix_hashes without block_tokens; give the block size as "
                '"block_tokens" in the sidecar NAME.meta.json (python -m traces.cut keeps the '
                "sidecar of the trace it cuts)"
            )
        _check_prefix_counts(offsets, prompt_tokens, block_tokens, where)
        _check_chained(offsets, blocks, list(dense), where)
    return Trace(
        name=name,
        path=path,
        sha256=sha256,
        request_id=request_id,
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        domain=domain.astype(np.int32),
        domain_names=domain_names,
        session=session,
        delay_s=delay_s,
        temperature=temperature,
        priority=np.array([r.priority or 0 for r in requests], dtype=np.int64),
        max_new_tokens=_most_new(requests, output_tokens, where),
        slo=slo.astype(np.int32),
        slo_names=slo_names,
        prefix_offsets=offsets,
        prefix_blocks=blocks,
        n_blocks=len(dense),
        block_tokens=(block_tokens or 0) if len(blocks) else 0,
    )


def trace_requests(trace: Trace) -> list[Request]:
    """The columns as records again: ``build_trace`` of them has the same columns."""

    def named(codes: Codes, names: Sequence[str]) -> list[str | None]:
        return [names[code] if code >= 0 else None for code in codes.tolist()]

    domains, slos = named(trace.domain, trace.domain_names), named(trace.slo, trace.slo_names)
    offsets, blocks = trace.prefix_offsets.tolist(), trace.prefix_blocks.tolist()
    sessions, temperatures = trace.session.tolist(), trace.temperature.tolist()
    delays = trace.delay_s.tolist()
    return [
        Request(
            request_id=trace.request_id[i],
            arrival_s=arrival_s,
            prompt_tokens=prompt,
            output_tokens=output,
            domain=domains[i],
            session_id=str(sessions[i]) if sessions[i] >= 0 else None,
            delay_s=None if math.isnan(delays[i]) else delays[i],
            prefix_hashes=blocks[offsets[i] : offsets[i + 1]] or None,
            temperature=None if math.isnan(temperatures[i]) else temperatures[i],
            priority=priority or None,
            max_new_tokens=most or None,
            slo=slos[i],
        )
        for i, (arrival_s, prompt, output, priority, most) in enumerate(
            zip(
                trace.arrival_s.tolist(),
                trace.prompt_tokens.tolist(),
                trace.output_tokens.tolist(),
                trace.priority.tolist(),
                trace.max_new_tokens.tolist(),
                strict=True,
            )
        )
    ]


def _delays(requests: Sequence[Request], session: Ints, where: Where) -> Floats:
    """[N] NaN where not given; checked."""
    given = np.array([r.delay_s is not None for r in requests])
    delay_s = np.array(
        [np.nan if r.delay_s is None else r.delay_s for r in requests], dtype=np.float64
    )
    _check(
        "delay_s", delay_s, given & ~(np.isfinite(delay_s) & (delay_s >= 0)), where,
        "a finite number of seconds, 0 or more",
    )  # fmt: skip
    _check(
        "delay_s", delay_s, given & (session < 0), where,
        "left out where there is no session_id, whose answer it would follow",
    )  # fmt: skip
    return delay_s


def _most_new(requests: Sequence[Request], output_tokens: Ints, where: Where) -> Ints:
    """[N] the limits that were given, each at least what was generated."""
    most = np.array([r.max_new_tokens or 0 for r in requests], dtype=np.int64)
    given = np.array([r.max_new_tokens is not None for r in requests])
    bad = given & ((most < output_tokens) | (most > MAX_TOKENS))
    _check(
        "max_new_tokens", most, bad, where,
        f"a whole number from the request's output_tokens to {MAX_TOKENS}",
    )  # fmt: skip
    return most


def _codes(values: Iterable[str | None]) -> tuple[Ints, tuple[str, ...]]:
    seen: dict[str, int] = {}
    codes = [-1 if v is None else seen.setdefault(v, len(seen)) for v in values]
    return np.array(codes, dtype=np.int64), tuple(seen)


def _tokens(name: str, values: Iterable[int], where: Where) -> Ints:
    tokens = np.array(list(values), dtype=np.int64)
    bad = (tokens < 1) | (tokens > MAX_TOKENS)
    _check(name, tokens, bad, where, f"a whole number from 1 to {MAX_TOKENS}")
    return tokens


def _check(
    name: str, values: npt.NDArray[Any], bad: npt.NDArray[np.bool_], where: Where, constraint: str
) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{where(row)}: {name} {values[row].item()} must be {constraint}; "
            "mend or remove the request"
        )


def _check_sorted(arrival_s: Floats, where: Where) -> None:
    back = np.diff(arrival_s) < 0
    if back.any():
        row = int(np.argmax(back)) + 1
        raise ValueError(
            f"{where(row)}: arrival_s {arrival_s[row].item()} is before the "
            f"{arrival_s[row - 1].item()} of the request above it; sort the file by arrival_s"
        )


def _check_unique(request_id: Sequence[str], where: Where) -> None:
    if len(set(request_id)) == len(request_id):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(request_id):
        if name in first:
            raise ValueError(
                f"{where(row)}: request_id {name!r} was used before, at {where(first[name])}; "
                "give every request its own"
            )
        first[name] = row


def _check_prefix_counts(
    offsets: Ints, prompt_tokens: Ints, block_tokens: int, where: Where
) -> None:
    counts = np.diff(offsets)
    most = -(-prompt_tokens // block_tokens)
    if (counts > most).any():
        row = int(np.argmax(counts > most))
        raise ValueError(
            f"{where(row)}: {counts[row]} prefix_hashes, but {prompt_tokens[row]} prompt tokens "
            f"make at most {most[row]} blocks of {block_tokens}; drop hashes or correct "
            "block_tokens in the sidecar"
        )


def _check_chained(offsets: Ints, blocks: Ints, hashes: Sequence[int | str], where: Where) -> None:
    """A hash must always follow the same hash, or it cannot stand for the whole prefix."""
    before = np.empty_like(blocks)
    before[1:] = blocks[:-1]
    starts = offsets[:-1][np.diff(offsets) > 0]
    before[starts] = -1
    first_before = np.empty(len(hashes), dtype=np.int64)
    first_before[blocks[::-1]] = before[::-1]
    wrong = first_before[blocks] != before
    if wrong.any():
        at = int(np.argmax(wrong))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"{where(row)}: prefix hash {hashes[blocks[at]]!r} follows another block than where it "
            "first appeared; a hash must stand for its block and all tokens before it: chain them"
        )
