"""The simulated half of the digital twin: what was recorded, replayed, and measured the same way.

Owns the way from a client's timings to a trace, the time a request spends outside the engine, and
the figures that are compared. Starts no server.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import decode_step_seconds, prefill_seconds
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.logs.records import StepRecord
from simulator.acceptance.load import AcceptanceProfile
from simulator.engine.config import EngineConfig
from simulator.fit.logged_steps import logged
from simulator.fit.served import Served
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.study.metrics import is_finished, request_times
from traces import Request, Trace, write_trace

Floats = npt.NDArray[np.float64]

_FEW = 8
"""Requests of a step that leaves places in the batch, so that nobody waits for one."""

FIGURES = ("output_tok_s", "tpot_p50_ms", "ttft_p99_ms", "verified_tokens")
"""What is compared: tokens per second from the first arrival to the last token, milliseconds as
the client sees them, and tokens computed per request and step, the anchor included."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as its client saw it; seconds since the epoch."""

    rid: str
    domain: str
    prompt: tuple[int, ...]
    sent_s: float
    first_s: float
    end_s: float
    output_tokens: int
    cached_tokens: int
    bursts: int
    """Messages of the stream that carried tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """One policy at one load for a while: what the client saw and what the server logged."""

    policy: str
    load: str
    third: int
    seen: list[Seen]
    steps: list[StepRecord]


def served_of(segments: Sequence[Segment]) -> dict[str, Served]:
    """What the client knows of each request, for the fits."""
    return {
        one.rid: Served(
            domain=one.domain,
            cached_tokens=one.cached_tokens,
            output_tokens=one.output_tokens,
            first_s=one.first_s,
        )
        for segment in segments
        for one in segment.seen
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Timings:
    """Requests and steps of one or several replays or recordings, pooled."""

    span_s: float
    """First arrival to last token, summed over the parts."""
    tokens: float
    ttft_s: Floats
    tpot_s: Floats
    """Of requests with at least two tokens."""
    computed_tokens: float
    """By the target in decode steps."""
    committed_tokens: float
    request_steps: float
    steps: float

    def figures(self) -> dict[str, float]:
        """``FIGURES`` and a few that explain them."""
        request_steps = max(self.request_steps, 1.0)
        return {
            "output_tok_s": self.tokens / self.span_s,
            "tpot_p50_ms": 1e3 * float(np.median(self.tpot_s)),
            "ttft_p99_ms": 1e3 * float(np.percentile(self.ttft_s, 99)),
            "verified_tokens": self.computed_tokens / request_steps,
            "ttft_p50_ms": 1e3 * float(np.median(self.ttft_s)),
            "requests_per_step": self.request_steps / max(self.steps, 1.0),
            "tokens_per_request_step": self.committed_tokens / request_steps,
        }


def pooled(parts: Sequence[Timings]) -> Timings:
    """Several as one."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Timings):
        values = [getattr(part, field.name) for part in parts]
        found[field.name] = (
            np.concatenate(values) if isinstance(values[0], np.ndarray) else float(sum(values))
        )
    return Timings(**found)


def measured(segment: Segment) -> Timings:
    """What the client saw and the server logged."""
    seen, steps = segment.seen, segment.steps
    request_steps = sum(step.requests for step in steps)
    return Timings(
        span_s=max(one.end_s for one in seen) - min(one.sent_s for one in seen),
        tokens=sum(one.output_tokens for one in seen),
        ttft_s=np.array([one.first_s - one.sent_s for one in seen]),
        tpot_s=np.array(
            [
                (one.end_s - one.first_s) / (one.output_tokens - 1)
                for one in seen
                if one.output_tokens > 1
            ]
        ),
        computed_tokens=sum(step.computed_tokens for step in steps),
        # Not what the steps accepted: the last one's may lie beyond the end of the text.
        committed_tokens=sum(one.output_tokens - 1 for one in seen),
        request_steps=request_steps,
        steps=len(steps),
    )


def drift(segment: Segment, model: CostModel) -> float:
    """Time that the segment's decode steps took over what the model says of the same steps.

    Above 1 the machine was slower than while the model was fitted: an error that no replay mends.
    """
    times = logged(segment.steps, {}).times
    tables = model.tables(int(times.tokens.max()), int(times.requests.max()))
    plain = np.isfinite(times.gap_s)
    took_s = (times.draft_s + times.target_s + times.gap_s)[plain].sum()
    columns = (times.tokens, times.requests, times.drafted, times.context_tokens.astype(float))
    says_s = sum(
        decode_step_seconds(tables, *size)
        for size in zip(*(column[plain].tolist() for column in columns), strict=True)
    )
    return float(took_s / says_s)


def at_speed(model: CostModel, factor: float) -> CostModel:
    """The model of a machine that takes ``factor`` times as long for everything."""

    def times(*seconds: float) -> tuple[float, ...]:
        return tuple(factor * one for one in seconds)

    assert model.additive is not None
    assert model.prefill is not None
    assert model.host is not None
    additive, draft, prefill = model.additive, model.draft, model.prefill
    return dataclasses.replace(
        model,
        additive=dataclasses.replace(
            additive,
            bias_s=factor * additive.bias_s,
            alpha_s=times(*additive.alpha_s),
            theta_s=times(*additive.theta_s),
        ),
        draft=draft and dataclasses.replace(draft, seconds=times(*draft.seconds)),
        prefill=dataclasses.replace(
            prefill,
            base_s=factor * prefill.base_s,
            token_s=factor * prefill.token_s,
            pair_s=factor * prefill.pair_s,
        ),
        host=dataclasses.replace(model.host, step_s=factor * model.host.step_s),
        context=model.context
        and dataclasses.replace(model.context, token_s=factor * model.context.token_s),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outside:
    """Seconds of a first token outside the engine: HTTP, tokens and text, both ways.

    A server that sleeps takes longer to answer than one that works, which takes a request up
    between two steps.
    """

    idle_s: float
    """Of a request that finds no step running."""
    busy_s: float
    """Of any other."""
    spread_s: Floats
    """Differences from these, to draw from."""

    def draw(self, idle: npt.NDArray[np.bool_], seed: int) -> Floats:
        """For each request, whether it finds the engine idle."""
        spread_s = np.random.default_rng(seed).choice(self.spread_s, idle.size)
        return np.maximum(np.where(idle, self.idle_s, self.busy_s) + spread_s, 0.0)

    @staticmethod
    def of(segments: Sequence[Segment], model: CostModel) -> Outside:
        """Measured where a client's clock meets the steps' own, medians throughout.

        Idle: what the first token took beyond the prefill. Busy: its way in and its way out. The
        way in is the time for which as many requests seem to be taken up too early as too late,
        by the step after which they were; the way out ends where their first decode step begins.
        How much both vary is what the way back of last tokens does.
        """
        tables = model.tables(1, 1)
        idle, early, late, out, back = [], [], [], [], []
        for segment in segments:
            begin = np.array([step.end_s - step.step_s for step in segment.steps])
            end = np.array([step.end_s for step in segment.steps]) + tables.host_s
            sent = np.array([one.sent_s for one in segment.seen])
            first: dict[str, int] = {}
            for number, step in enumerate(segment.steps):
                for rid in step.request_ids:
                    first.setdefault(rid, number)
            last = {rid: step.end_s for step in segment.steps for rid in step.request_ids}
            for one in segment.seen:
                if one.rid not in first:
                    continue
                back.append(one.end_s - last[one.rid])
                number = first[one.rid]
                few = segment.steps[number].requests <= _FEW
                if few and number > 1 and end[number - 1] > one.sent_s:
                    early.append(end[number - 2] - one.sent_s)
                    late.append(end[number - 1] - one.sent_s)
                    out.append(one.first_s - begin[number])
                    continue
                alone = ((sent > one.sent_s - 0.05) & (sent < one.first_s)).sum() == 1
                if alone and (number == 0 or end[number - 1] < one.sent_s - 0.05):
                    new = len(one.prompt) - one.cached_tokens
                    pairs = new * (one.cached_tokens + 0.5 * new)
                    engine_s = prefill_seconds(tables, new, pairs) + tables.host_s
                    idle.append(one.first_s - one.sent_s - engine_s)
        if len(idle) < 10 or len(late) < 10:
            raise ValueError(
                f"only {len(idle)} requests found the server idle and {len(late)} lightly busy; "
                "lower the light load or record longer"
            )
        way_in_s = float(np.median(np.concatenate((early, late))))
        spread_s = np.array(back) - np.median(back)
        return Outside(
            idle_s=float(np.median(idle)),
            busy_s=max(way_in_s + float(np.median(out)), 0.0),
            spread_s=spread_s,
        )


def trace_of(segment: Segment, path: Path) -> Trace:
    """The segment as a request trace; blocks of one token, as pages of one token are shared."""
    start_s = min(one.sent_s for one in segment.seen)

    def hashes(prompt: tuple[int, ...]) -> list[int | str]:
        found: list[int | str] = []
        digest = hashlib.blake2b(digest_size=6)
        for token in prompt:
            digest.update(token.to_bytes(4, "little"))
            found.append(int.from_bytes(digest.digest(), "little"))
        return found

    requests = [
        Request(
            request_id=one.rid,
            arrival_s=one.sent_s - start_s,
            prompt_tokens=len(one.prompt),
            output_tokens=one.output_tokens,
            domain=one.domain,
            prefix_hashes=hashes(one.prompt),
        )
        for one in sorted(segment.seen, key=lambda one: one.sent_s)
    ]
    return write_trace(
        path,
        requests,
        source=f"recorded: policy {segment.policy}, {segment.load} load",
        command="python -m benchmarks.twin",
        block_tokens=1,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """What was fitted, and the settings that the server ran with."""

    cost_model: CostModel
    acceptance: AcceptanceProfile
    belief: CostModel
    """What the server's policy planned with."""
    engine: EngineConfig
    outside: Outside

    def predict(self, trace: Trace, policy: str, *, seeds: int) -> Timings:
        """What the simulated server does, over several seeds."""
        return pooled([self._once(trace, policy, seed) for seed in range(seeds)])

    def load(self, trace: Trace, policy: str) -> float | None:
        """Offered requests over what the simulated server finishes when it is always full; None
        for a trace too short to tell."""
        clients = self.engine.max_running_requests
        full = dataclasses.replace(self._scenario(trace, policy, 0), concurrency=clients)
        outcome = simulate(full)
        finish_s = np.sort(outcome.requests["finish_s"][is_finished(outcome.requests)])
        if finish_s.size < 4 * clients:
            return None
        busy_s = finish_s[-clients] - finish_s[clients]
        offered = (len(trace) - 1) / float(trace.arrival_s[-1] - trace.arrival_s[0])
        return float(offered * busy_s / (finish_s.size - 2 * clients))

    def _scenario(self, trace: Trace, policy: str, seed: int) -> Scenario:
        return Scenario(
            trace=trace,
            cost_model=self.cost_model,
            acceptance=self.acceptance,
            policy=parse_policy(policy),
            engine=self.engine,
            belief=self.belief,
            seed=seed,
        )

    def _once(self, trace: Trace, policy: str, seed: int) -> Timings:
        scenario = dataclasses.replace(self._scenario(trace, policy, seed), step_capacity=4096)
        steps: list[npt.NDArray[Any]] = []
        outcome = simulate(scenario, on_steps=lambda _, log: steps.append(log.copy()))
        log = np.concatenate(steps)
        requests = outcome.requests
        times = request_times(requests)
        state = outcome.memories[0].state[0]
        done = is_finished(requests)
        request_steps = float(state["request_steps"])
        tpot_s = times["tpot"]
        before = np.searchsorted(log["start_s"], requests["arrival_s"]) - 1
        ends_s = log["start_s"][before] + log["duration_s"][before]
        idle = (before < 0) | (ends_s <= requests["arrival_s"])
        outside_s = self.outside.draw(idle[done], seed)
        return Timings(
            span_s=float(requests["finish_s"][done].max() + self.outside.busy_s),
            tokens=float(requests["generated"].sum()),
            ttft_s=times["ttft"][done] + outside_s,
            tpot_s=tpot_s[~np.isnan(tpot_s)],
            computed_tokens=request_steps + float(requests["verified"].sum()),
            committed_tokens=float((requests["generated"][done] - 1).sum()),
            request_steps=request_steps,
            steps=float(state["decode_steps"]),
        )
