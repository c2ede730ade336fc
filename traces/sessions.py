"""Requests of one domain: conversations matched to drawn arrivals and lengths.

Owns the matching and the identity of prefix blocks. Arrivals and lengths are drawn first and kept
exactly, so that a trace has the measured rates and lengths; conversations are then laid over them:
each arrival continues the waiting conversation whose length fits best, or opens a new one. Knows
nothing of files.
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass

import numpy as np

from traces.draws import arrival_times, choose, lengths, stream, values
from traces.mixture import Domain, Sessions

Block = tuple[str, bool, int, int]
"""(domain, of a system prompt, number of that or of the opening request, place): equal for equal
prefixes only."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One request before the domains are merged and named."""

    domain: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    session: int | None
    blocks: list[Block]
    temperature: float | None
    priority: int | None
    slo: str | None


def draw_domain(
    domain: Domain, *, rate_req_s: float, span_s: float, block_tokens: int | None, seed: int
) -> list[Drawn]:
    """The requests of one domain in arrival order. Law: a pure function of its arguments.

    Within a conversation the block lists are prefix-closed: a follow-up's list begins with the
    whole list of the turn before it.
    """
    arrival_s = arrival_times(
        domain.arrivals,
        rate_req_s=rate_req_s,
        span_s=span_s,
        rng=stream(seed, domain.name, "arrivals"),
    ).round(3)
    n = len(arrival_s)

    def uniforms(purpose: str) -> np.typing.NDArray[np.float64]:
        return stream(seed, domain.name, purpose).random(n)

    prompts = lengths(domain.prompt_tokens, uniforms("prompt_tokens"))
    outputs = lengths(domain.output_tokens, uniforms("output_tokens"))
    sessions: list[int | None] = [None] * n
    if domain.sessions is not None:
        sessions = list(
            _match(
                domain.sessions,
                arrivals=arrival_s.tolist(),
                prompts=prompts.tolist(),
                outputs=outputs.tolist(),
                gaps=values(domain.sessions.gap_s, uniforms("gap_s")).tolist(),
                added=lengths(domain.sessions.new_tokens, uniforms("new_tokens")).tolist(),
                goes_on=(uniforms("follow_up") < domain.sessions.follow_up_share).tolist(),
            )
        )
    system = choose(
        [(k, prompt.share) for k, prompt in enumerate(domain.system_prompts)], uniforms("system")
    )
    temperature = choose(domain.temperature, uniforms("temperature"))
    priority = choose(domain.priority, uniforms("priority"))
    slo = choose(domain.slo, uniforms("slo"))
    opening: dict[int, int] = {}
    drawn = []
    for row in range(n):
        session = sessions[row]
        # A conversation keeps the system prompt (and thus the blocks) that its first turn drew.
        first = row if session is None else opening.setdefault(session, row)
        drawn.append(
            Drawn(
                domain=domain.name,
                arrival_s=float(arrival_s[row]),
                prompt_tokens=int(prompts[row]),
                output_tokens=int(outputs[row]),
                session=session,
                blocks=_blocks(domain, first, system[first], int(prompts[first]),
                               int(prompts[row]), block_tokens),
                temperature=temperature[row],
                priority=priority[row],
                slo=slo[first],
            )
        )  # fmt: skip
    return drawn


def _match(
    rules: Sessions,
    *,
    arrivals: list[float],
    prompts: list[int],
    outputs: list[int],
    gaps: list[float],
    added: list[int],
    goes_on: list[bool],
) -> list[int]:
    """The conversation of each request; a prompt is longer than what its conversation holds."""
    waiting: list[tuple[float, int, int]] = []  # (due time, context tokens, session)
    due: list[tuple[int, int]] = []  # sorted (context tokens, session)
    session_of = []
    opened = 0
    for row, now in enumerate(arrivals):
        while waiting and waiting[0][0] <= now:
            _, context, session = heapq.heappop(waiting)
            bisect.insort(due, (context, session))
        place = _best_fit(due, wanted=prompts[row] - added[row], below=prompts[row])
        if place is None:
            session, opened = opened, opened + 1
        else:
            session = due.pop(place)[1]
        session_of.append(session)
        if goes_on[row]:
            context = prompts[row] + int(rules.kept_output_share * outputs[row])
            heapq.heappush(waiting, (now + gaps[row], context, session))
    return session_of


def _best_fit(due: list[tuple[int, int]], *, wanted: int, below: int) -> int | None:
    """Place of the context nearest to ``wanted`` among those below ``below``."""
    end = bisect.bisect_left(due, (below, -1))
    if end == 0:
        return None
    place = bisect.bisect_left(due, (wanted, -1), 0, end)
    near = [k for k in (place - 1, place) if 0 <= k < end]
    return min(near, key=lambda k: abs(due[k][0] - wanted))


def _blocks(
    domain: Domain,
    first: int,
    system: int | None,
    first_prompt: int,
    prompt_tokens: int,
    block_tokens: int | None,
) -> list[Block]:
    """The full blocks of a prompt: the system prompt's, then the conversation's own."""
    if block_tokens is None or (domain.sessions is None and not domain.system_prompts):
        return []
    shared = 0
    if system is not None and first_prompt > domain.system_prompts[system].tokens:
        shared = domain.system_prompts[system].tokens // block_tokens
    return [
        (domain.name, True, system or 0, place)
        if place < shared
        else (domain.name, False, first, place)
        for place in range(prompt_tokens // block_tokens)
    ]
