"""What an importer returns: requests as their source has them, and what happened to its rows.

Owns which rows can be requests, and the places that later checks name. Knows no format.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from traces.columns import Floats
from traces.importers.clock import Clock
from traces.schema import Request

FASTEST_TOKENS_S = 10_000.0
"""Tokens per second of one request beyond what any hardware generates."""
MOST_REQUESTS = 10_000_000
CACHED = "not carried: cached tokens, a count without the prefixes"


@dataclass(kw_only=True)
class Imported:
    """Requests in source order; ``arrival_s`` is in the source's unit until ``clock`` tells it."""

    name: Callable[[int], str]
    """FILE:LINE of a place."""
    clock: Clock = field(default_factory=Clock)
    requests: list[Request] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    """[N] where each request stands in the source."""
    lasted_s: array[float] = field(default_factory=lambda: array("d"))
    """[N] seconds from its arrival until it was answered; NaN where the source does not say."""
    delay_unit: str = "s"
    """Of ``delay_s``, as the source has it."""
    block_tokens: int | None = None
    """Tokens per hash: what the source says of itself, else what its format documents."""
    carries_blocks: bool = False
    """Whether the source itself says its block size."""
    accumulates: bool = False
    """Whether the tool that the format belongs to sends a session's history before each turn."""
    per_session: bool = False
    """Whether times count from the start of their session, which the source does not know."""
    together: dict[str, str] = field(default_factory=dict)
    """The conversation of a session that counts its times with others from one start."""
    rate_req_s: float | None = None
    """The request rate that a benchmark without arrival times was run at."""
    drawn: bool = False
    """Whether any arrival time was drawn at random."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was done to rows, and to how many."""
    models: Counter[str] = field(default_factory=Counter)
    """Requests by the model that the source names."""

    def keep(
        self, request: Request, place: int, *, lasted_s: float = math.nan, model: str | None = None
    ) -> None:
        """Append a request; one that generated nothing still costs its prefill and its first token.

        A row without prompt tokens is no request that a server could have run: left out. So fast an
        answer that no hardware gives it is an error of the source.
        """
        if request.prompt_tokens == 0:
            self.notes["left out: no prompt tokens"] += 1
            return
        if request.output_tokens == 0:
            self.notes["0 output tokens raised to 1"] += 1
            request.output_tokens = 1
        if len(self.requests) >= MOST_REQUESTS:
            raise ValueError(
                f"{self.name(place)}: more than {MOST_REQUESTS:,} requests; convert a part: "
                "--rows FIRST:END"
            )
        check_speed(self.name(place), request.output_tokens, lasted_s)
        if model is not None:
            self.models[model] += 1
        self.requests.append(request)
        self.places.append(place)
        self.lasted_s.append(lasted_s)

    def where(self, row: int) -> str:
        """FILE:LINE of a kept request."""
        return self.name(self.places[row])

    def times(self) -> Floats:
        """[N] arrivals; NaN where the source has none."""
        return np.array([request.arrival_s for request in self.requests], dtype=np.float64)

    def reorder(self, order: Iterable[int]) -> None:
        """Put the requests into another order, with all that belongs to each."""
        rows = list(order)
        self.requests = [self.requests[row] for row in rows]
        self.places = array("q", [self.places[row] for row in rows])
        self.lasted_s = array("d", [self.lasted_s[row] for row in rows])


def check_speed(where: str, output_tokens: int, lasted_s: float) -> None:
    """``ValueError`` where a request generated its tokens faster than hardware does."""
    if output_tokens > 1 and output_tokens - 1 > FASTEST_TOKENS_S * lasted_s >= 0:
        rate = "at once" if lasted_s == 0 else f"at {output_tokens / lasted_s:,.0f} tokens/s"
        raise ValueError(
            f"{where}: {output_tokens} tokens in {lasted_s:g} s, {rate}, above the "
            f"{FASTEST_TOKENS_S:,.0f} of any hardware; its duration is wrong or in another unit"
        )
