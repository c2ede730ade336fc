"""The small scenarios that the studies replay: traces, cost models, steady states.

Knows no published figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.model import CostModel, decode_cost_model
from simulator.engine.layout import DECODE_STEP, Records
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome, Scenario
from traces import Request, Trace, build_trace

COMMAND = "python -m benchmarks.validation"


def made_trace(
    name: str, *, prompt_tokens: int, output_tokens: Sequence[int], domains: Sequence[str]
) -> Trace:
    """Requests that are all there at the start; domains take turns."""
    requests = [
        Request(
            request_id=str(i),
            arrival_s=0.0,
            prompt_tokens=prompt_tokens,
            output_tokens=int(tokens),
            domain=domains[i % len(domains)],
        )
        for i, tokens in enumerate(output_tokens)
    ]
    return build_trace(
        requests, name=name, path=name, sha256="", block_tokens=None, where=lambda i: f"{name}:{i}"
    )


def exponential_lengths(count: int, *, mean: float, most: int, seed: int) -> list[int]:
    """Output tokens, 1 to ``most``: exponential, cut off."""
    drawn = np.random.default_rng(seed).exponential(mean, count)
    lengths: list[int] = np.clip(np.rint(drawn), 1, most).astype(int).tolist()
    return lengths


def made_cost_model(
    name: str,
    *,
    source: str,
    hardware: str,
    model: str,
    gpus: int,
    tokens: Sequence[int],
    seconds: Sequence[float],
    between: str,
    draft: dict[str, Any] | None,
    prefill_token_s: float,
    kv_pool_tokens: int,
) -> CostModel:
    """An analytic model for one replica whose prompts cost ``prefill_token_s`` a token.

    ``kv_pool_tokens`` is meant never to bind.
    """
    analytic = {"origin": "analytic"}
    requests = 4096 if draft is None else draft["requests"][-1]
    value: dict[str, Any] = {
        "schema_version": 1,
        "name": name,
        "kind": "table",
        "provenance": analytic
        | {"source": source, "hardware": hardware, "model": model, "dtype": "as published"}
        | {"tp": gpus, "engine": "as published", "date": "2026-11", "command": COMMAND},
        "valid_range": {
            "tokens": [tokens[0], tokens[-1]],
            "requests": [1, requests],
            "context_tokens": [0, 65536],
        },
        "fit_error": None,
        "table": analytic
        | {"tokens": list(tokens), "seconds": [float(s) for s in seconds], "between": between},
        "prefill": analytic | {"base_s": 0.0, "token_s": prefill_token_s, "pair_s": 0.0},
        "host": analytic | {"step_s": 0.0},
        "graphs": analytic | {"tiers_tokens": [], "beyond_last_s": 0.0},
        "memory": analytic
        | {"gpus": gpus, "gpu_memory_bytes": 10**12, "weights_bytes": 10**11}
        | {"kv_bytes_per_token": 10**4, "kv_pool_tokens": kv_pool_tokens},
    }
    if draft is not None:
        value["draft"] = analytic | draft
    return decode_cost_model(value, where=name)


def replay(scenario: Scenario, steps: list[Records] | None = None) -> Outcome:
    """The outcome; ``KeyboardInterrupt`` where Ctrl-C cut it short. ``steps`` collects records."""

    def keep(_: int, records: Records) -> None:
        if steps is not None:
            steps.append(records.copy())

    outcome = simulate(scenario, on_steps=keep)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome


class Steady(NamedTuple):
    """Rates while every client has a request running."""

    tok_s: float
    verified_tokens: float
    """Per request and step, anchor included."""
    accepted_length: float
    """Tokens emitted per request and step."""


def steady(scenario: Scenario) -> Steady:
    """A closed loop's rates over the decode steps that hold all of its clients."""
    collected: list[Records] = []
    replay(scenario, collected)
    steps = np.concatenate(collected)
    full = (steps["kind"] == DECODE_STEP) & (steps["requests"] == scenario.concurrency)
    steps = steps[full]
    requests, committed = int(steps["requests"].sum()), int(steps["committed_tokens"].sum())
    return Steady(
        tok_s=committed / float(steps["duration_s"].sum()),
        verified_tokens=1.0 + int(steps["verify_tokens"].sum()) / requests,
        accepted_length=committed / requests,
    )


def experts_touched(
    tokens: npt.ArrayLike, *, experts: int, per_token: int
) -> npt.NDArray[np.float64]:
    """Expected share of a layer's experts that some of ``tokens`` choose, routed evenly."""
    return 1.0 - (1.0 - per_token / experts) ** np.asarray(tokens, dtype=np.float64)
