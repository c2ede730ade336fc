"""One benchmark run of a server: its load, its workload, and what was measured.

Owns the record and what no run can have measured. Knows no file's format and simulates nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_dspark.core.policy import parse_policy

LEAST_MS, MOST_MS = 0.2, 600_000.0
"""No user has 5,000 tokens a second, and nobody waits ten minutes for one."""
MOST_TOKENS_PER_S = 5e6
_LITTLE = 8.0
"""By how much less than its latencies say a short run may show, most of whose time is ramps."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run of equal requests, all measured figures over the whole of it."""

    where: str
    """File and line, or whose figure it is."""
    policy: str
    """As ``--policy`` names it."""
    concurrency: int | None = None
    """Clients that each send when they are answered; None: requests come at ``rate``."""
    rate: float | None = None
    """Requests per second, Poisson, with ``concurrency`` None."""
    requests: int
    prompt_tokens: int
    """Mean per request."""
    output_tokens: int
    """Mean per request."""
    spread: float = 0.0
    """Lengths are uniform from (1 - spread) to (1 + spread) of the mean."""
    accepted_length: float | None = None
    """Tokens per request and step, the target's own included; None where nobody says."""
    output_tok_s: float | None = None
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    engine: str = ""
    """``vllm`` or ``sglang``, where its file says; empty where it does not."""
    median: bool = False
    """Whether TPOT and TTFT are medians; else means."""

    def __post_init__(self) -> None:
        parse_policy(self.policy)
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError(
                f"{self.where}: give either a concurrency or a rate, so that the run can be "
                "replayed: benchmark with --max-concurrency, or name a column"
            )
        for name, least, most in (
            ("concurrency", 1, 8192), ("rate", 1e-6, 1e6), ("requests", 1, 10**7),
            ("prompt_tokens", 1, 10**7), ("output_tokens", 1, 10**7), ("spread", 0.0, 1.0),
            ("accepted_length", 1.0, 16.0), ("output_tok_s", 1e-6, MOST_TOKENS_PER_S),
            ("tpot_ms", LEAST_MS, MOST_MS), ("ttft_ms", LEAST_MS, MOST_MS),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and least <= value <= most):
                raise ValueError(
                    f"{self.where}: {name} {value:g} lies outside {least:g} to {most:g}, where no "
                    "server's does; milliseconds are asked for where the name ends in _ms"
                )
        if self.output_tok_s is None and self.tpot_ms is None:
            raise ValueError(
                f"{self.where}: neither output tokens/s nor a TPOT; at least one is needed"
            )
        self._check_speed()

    def _check_speed(self) -> None:
        """By Little's law clients = rate x latency, within what ramps and means of ratios move."""
        if self.output_tok_s is None or self.tpot_ms is None or self.concurrency is None:
            return
        most = 1e3 * self.concurrency / self.tpot_ms
        least = 0.0
        if self.ttft_ms is not None:
            each_ms = self.ttft_ms / self.output_tokens + self.tpot_ms
            least = 1e3 * self.concurrency / each_ms
        if not least / _LITTLE <= self.output_tok_s <= 1.5 * most:
            raise ValueError(
                f"{self.where}: {self.output_tok_s:g} tokens/s from {self.concurrency} clients "
                f"with a TPOT of {self.tpot_ms:g} ms, which leaves {least:.4g} to {most:.4g}; TPOT "
                "and TTFT are in milliseconds, tokens/s are of all clients together"
            )

    @property
    def speculates(self) -> bool:
        """Whether its policy drafts."""
        return parse_policy(self.policy).policy.drafts

    @property
    def load(self) -> str:
        """In words."""
        if self.concurrency is not None:
            return f"{self.concurrency} clients"
        return f"{self.rate:g} requests/s"
