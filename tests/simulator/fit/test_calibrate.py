"""A step log becomes a cost model and an acceptance profile that replay it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.schema import Provenance
from sglang_dspark.core.costs.tables import UNIFORM, decode_step_seconds
from sglang_dspark.core.policy import FixedLength, GlobalBudget, PolicyFile
from sglang_dspark.logs.step_log import StepLog
from sglang_dspark.logs.step_parts import header_of
from simulator.acceptance.load import load_acceptance
from simulator.fit import calibrate
from simulator.fit.cost import fit_cost
from simulator.fit.gaps import prefill_batches
from simulator.fit.logged_steps import logged
from simulator.fit.served import Served
from tests.simulator.fit.logged_scenes import GAMMA, PLANNING, TRUTH, Log, planned_log
from traces import Request, write_trace

PROVENANCE = Provenance(
    origin="measured", source="test", hardware="none", model="none", dtype="none", tp=1,
    engine="none", date="2026-01-01", command="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def log() -> Log:
    return planned_log(PLANNING, TRUTH, steps=3000, rounds_each=25, batch_sizes=True, noise=0.02)


def fitted(log: Log) -> Any:
    times = logged(log.records, log.served).times
    return fit_cost(times, gamma=GAMMA, name="fitted", provenance=PROVENANCE)


@pytest.mark.law
def test_the_fitted_model_prices_steps_as_the_server_took_them(log: Log) -> None:
    """Each within 5 % of the truth with its mean noise, all together within 1 %."""
    found = fitted(log)
    ours, truth = (m.tables(16 * (GAMMA + 1), 16) for m in (found.model, TRUTH))
    ratios = []
    for record in log.records[::7]:
        context = float(record.state.context_tokens.sum())
        size = (record.computed_tokens, record.requests, record.requests, context, UNIFORM)
        ratios.append(decode_step_seconds(ours, *size) / decode_step_seconds(truth, *size))
    assert np.mean(ratios) == pytest.approx(1.02, rel=0.01)
    assert ratios == pytest.approx([1.02] * len(ratios), rel=0.05)
    assert found.model.fit_error.median_rel < 0.02
    assert found.model.valid_range.requests == (1, 16)
    assert found.not_identified == ()


@pytest.mark.law
def test_prefills_are_read_from_the_gaps_between_steps(log: Log) -> None:
    found = fitted(log).model.prefill
    for tokens in (50, 200):
        ours = found.base_s + found.token_s * tokens + found.pair_s * 0.5 * tokens**2
        assert ours == pytest.approx(0.002 + 5e-5 * tokens + 1e-8 * 0.5 * tokens**2, rel=0.1)


@pytest.mark.example
def test_a_log_of_full_verification_cannot_tell_requests_from_tokens() -> None:
    log = planned_log(TRUTH, TRUTH, policy=FixedLength(), steps=400, batch_sizes=True)
    assert any("always grew together" in line for line in fitted(log).not_identified)


@pytest.mark.example
def test_steps_that_overlap_are_spoken_of(log: Log) -> None:
    """As with overlap on a CPU, where a step's results are known after the next one ran."""
    late = [
        dataclasses.replace(record, verify_s=record.verify_s * (1 + number % 4 // 3))
        for number, record in enumerate(log.records[:600])
    ]
    early = calibrate.calibrate(log.records[:600], {}, name="x", provenance=PROVENANCE, resamples=2)
    found = calibrate.calibrate(late, {}, name="x", provenance=PROVENANCE, resamples=2)
    assert not any("overlap" in line for line in early.not_identified)
    assert any("overlap" in line for line in found.not_identified)


@pytest.mark.example
def test_a_short_log_is_refused() -> None:
    log = planned_log(TRUTH, TRUTH, steps=20)
    with pytest.raises(ValueError, match="needs 30: record longer"):
        fitted(log)


@pytest.mark.example
def test_rounds_without_drafts_or_without_a_policy_are_left_out(log: Log) -> None:
    first, second, *rest = log.records[:40]
    nothing = dataclasses.replace(first.state, logits=np.full_like(first.state.logits, -np.inf))
    records = [
        dataclasses.replace(first, state=nothing),
        dataclasses.replace(second, degraded="confidences were NaN"),
        *rest,
    ]
    found = logged(records, {})
    assert sum(found.left_out.values()) == first.requests + second.requests
    assert len(found.rounds.request) == sum(record.requests for record in rest)


@pytest.mark.example
def test_exploration_is_asked_for_with_its_price() -> None:
    log = planned_log(TRUTH, TRUTH, policy=FixedLength(length=2), steps=300)
    found = calibrate.calibrate(log.records, {}, name="x", provenance=PROVENANCE, resamples=2)
    assert 0.0 < found.explore.share <= 1.0
    assert any("verify" in line and "output rate" in line for line in found.not_identified)


@pytest.mark.example
def test_prefill_steps_are_counted_by_first_tokens() -> None:
    def counted(*first_s: float) -> int:
        new = [Served(first_s=value) for value in first_s]
        return prefill_batches(new, [10] * len(new))

    nan = float("nan")
    assert counted(nan, nan) == 1
    assert counted(1.0, 1.001, 1.002) == 1
    assert counted(1.03, 1.0, 1.001, nan) == 2


@pytest.mark.example
def test_the_command_writes_what_the_simulator_reads(
    log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = header_of(
        policy=PolicyFile(policy=GlobalBudget()),
        cost_model=TRUTH,
        gamma=GAMMA,
        max_requests=16,
        versions={},
    )
    writer = StepLog(tmp_path / "steps", header=header, queue_records=10_000)
    for record in log.records[:800]:
        writer.observe(record)
    writer.close()
    names = sorted({rid for record in log.records[:800] for rid in record.request_ids})
    write_trace(
        tmp_path / "requests.jsonl",
        [
            Request(
                request_id=name,
                arrival_s=0.0,
                prompt_tokens=10,
                output_tokens=10,
                domain="odd" if int(name.split("-")[1]) % 2 else "even",
            )
            for name in names
        ],
        source="test",
        command="test",
    )
    out = tmp_path / "fit"
    status = calibrate.main(
        [str(tmp_path / "steps"), "-o", str(out), "--requests", str(tmp_path / "requests.jsonl")]
    )
    assert status == 0
    assert "position  acceptance" in capsys.readouterr().out
    assert load_cost_model(out / "cost_model.json").acceptance == "acceptance.parquet"
    profile = load_acceptance(out / "acceptance.parquet")
    assert profile.gamma == GAMMA
    assert profile.domains == ("even", "odd")  # type: ignore[attr-defined]
    model = load_cost_model(out / "cost_model.json")
    assert (model.provenance.origin, model.kind) == ("measured", "additive")
    report = json.loads((out / "fit.json").read_text())
    assert report["acceptance"]["rounds"] == sum(r.requests for r in log.records[:800])
    assert report["cost_model"]["fit_error"]["median_rel"] < 0.1
    assert calibrate.main([str(tmp_path / "nowhere"), "-o", str(out)]) == 2
