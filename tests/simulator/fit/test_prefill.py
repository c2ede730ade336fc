"""The prices of prompts, from the files that a recorder writes: the whole way of an operator."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.costs.library import load_cost_model
from simulator.fit import calibrate
from simulator.fit.gaps import prefill_batches, step_times
from simulator.fit.prefill import Gaps, fit_prefill
from simulator.fit.served import Served, read_served
from tests.simulator.fit.logged_scenes import PLANNING, TRUTH, Log, planned_log
from tests.simulator.fit.recorded_scenes import write_recording
from traces import Request, write_trace

NOISE = 0.02
"""Of the mean time of every step and every prefill of the log."""
PRICES = dataclasses.replace(
    TRUTH,
    prefill=dataclasses.replace(TRUTH.prefill, base_s=0.004, token_s=2e-4, pair_s=2e-7),  # type: ignore[type-var]
)


@pytest.fixture(scope="module")
def log() -> Log:
    return planned_log(
        PLANNING, PRICES, steps=3000, rounds_each=8, batch_sizes=True, noise=NOISE, cached=True
    )


@pytest.fixture(scope="module")
def recorded(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``steps/``, ``mine.jsonl`` and ``mine.measured.jsonl``, as a recorder leaves them."""
    folder = tmp_path_factory.mktemp("recorded")
    write_recording(folder, log, planning=PLANNING)
    return folder


def calibrated(recorded: Path, *flags: str) -> tuple[Any, Any]:
    """(prefill block, fit.json) of the command."""
    out = recorded / f"fit{len(flags)}"
    assert calibrate.main([str(recorded / "steps"), "-o", str(out), *flags]) == 0
    return load_cost_model(out / "cost_model.json").prefill, json.loads(
        (out / "fit.json").read_text()
    )


@pytest.mark.law
def test_the_command_recovers_known_prices_from_what_the_recorder_wrote(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token within 2 %, a pair within 5 %, a step within 5 %, inside the intervals it states."""
    found, report = calibrated(recorded, "--requests", str(recorded / "mine.jsonl"))
    truth = PRICES.prefill
    assert truth is not None
    for name, within in (("token_s", 0.02), ("pair_s", 0.05), ("base_s", 0.05)):
        true = (1.0 + NOISE) * getattr(truth, name)
        assert getattr(found, name) == pytest.approx(true, rel=within), name
        _, low, high = report["cost_model"]["prefill"][name]
        assert 0.97 * low <= true <= 1.03 * high, name
    assert report["not_identified"] == []
    assert "us a token [" in capsys.readouterr().out


@pytest.mark.law
def test_a_short_prompt_behind_a_long_cached_one_is_priced(recorded: Path) -> None:
    """Case 35: 10 new tokens and 600 cached ones; without what was measured it is off, and said."""
    known, _ = calibrated(recorded, "--requests", str(recorded / "mine.jsonl"))
    blind, report = calibrated(recorded)
    new, pairs = 10, 10 * (600 + 5)
    truth = PRICES.prefill
    assert truth is not None

    def priced(block: Any) -> float:
        return float(block.base_s + new * block.token_s + pairs * block.pair_s)

    true = (1.0 + NOISE) * priced(truth)
    assert priced(known) == pytest.approx(true, rel=0.02)
    assert abs(priced(blind) - true) > 0.1 * true
    assert blind.token_s < 0.6 * truth.token_s
    (line,) = [line for line in report["not_identified"] if "cached" in line]
    assert line.startswith("100% of the gaps")


@pytest.mark.example
def test_a_prefill_on_an_idle_server_counts_from_when_it_was_formed(log: Log) -> None:
    """Where nobody ran before: the time since the step before says nothing, the entry does."""
    first, second = log.records[0], log.records[1]
    begin_s = second.end_s - second.step_s
    names = tuple(f"new-{i}" for i in range(second.requests))
    after = dataclasses.replace(second, request_ids=names)
    known = Served(cached_tokens=0, entry_s=begin_s - 1e-4, first_s=begin_s, on_step_clock=True)
    times = step_times([first, after], dict.fromkeys(names, known))
    assert times.prefill_gap_s[1] == pytest.approx(1e-4, abs=1e-6)
    assert (times.prefill_batches[1], times.prefill_loops[1]) == (1, 1)
    apart = dataclasses.replace(known, on_step_clock=False)
    assert math.isnan(step_times([first, after], dict.fromkeys(names, apart)).prefill_gap_s[1])


@pytest.mark.example
def test_gaps_in_which_something_else_ran_say_nothing(log: Log) -> None:
    """A request that came back, and one that ended with its first token."""
    one, two, three = log.records[:3]
    back = dataclasses.replace(three, request_ids=(*two.request_ids[:-1], "again"))
    there = dataclasses.replace(one, request_ids=(*one.request_ids[:-1], "again"))
    times = step_times([there, two, back], log.served)
    assert math.isnan(times.prefill_gap_s[2])
    assert math.isnan(times.gap_s[2])
    between = Served(first_s=three.end_s - three.step_s - 1e-9, on_step_clock=True)
    plain = step_times([one, two, three], log.served)
    assert not math.isnan(plain.gap_s[2] if math.isnan(plain.prefill_gap_s[2]) else 0.0)
    found = step_times([one, two, three], {**log.served, "at once": between})
    assert math.isnan(found.gap_s[2])
    assert math.isnan(found.prefill_gap_s[2])


@pytest.mark.example
@pytest.mark.parametrize(
    ("fresh", "entries", "steps"),
    [
        ([100, 100], [1.0, 1.0], 1),
        ([100, 100], [1.0, 1.02], 2),
        ([600], [1.0], 3),
        ([600, 100], [1.0, 1.04], 3),
        ([100, 450], [1.0, 1.02], 3),
    ],
)
def test_chunks_are_counted(fresh: list[int], entries: list[float], steps: int) -> None:
    new = [Served(entry_s=value) for value in entries]
    assert prefill_batches(new, fresh, 256) == steps


def gaps_of(tokens: Any, seconds: Any, **changes: Any) -> Gaps:
    plain: dict[str, Any] = {
        "seconds": seconds, "tokens": tokens, "pairs": 0.5 * tokens**2.0,
        "steps": np.ones(len(tokens), np.int64), "cached_unknown": 0,
    }  # fmt: skip
    return Gaps(**plain | changes)


@pytest.mark.law
def test_what_gaps_cannot_tell_is_said() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 400, 400)
    noise = rng.gamma(100.0, 0.01, 400)
    flat = fit_prefill(gaps_of(tokens, noise * (0.004 + 2e-4 * tokens)))
    assert flat is not None
    assert any("cannot be told from nothing" in line for line in flat.not_identified)
    alike = fit_prefill(gaps_of(0 * tokens + 50, noise * 0.014))
    assert alike is not None
    assert any("a guess" in line for line in alike.not_identified)
    few = fit_prefill(
        gaps_of(tokens[:35], (1 + rng.gamma(1.0, 0.5, 35)) * (0.05 + 1e-5 * tokens[:35]))
    )
    assert few is not None
    assert any("record longer" in line for line in few.not_identified)
    assert fit_prefill(gaps_of(tokens[:20], noise[:20])) is None


@pytest.mark.example
def test_wrong_files_are_one_sentence(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, trace = str(recorded / "steps"), str(recorded / "mine.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"request_id": "a", "finish": "stop"}\n')
    other = tmp_path / "other.measured.jsonl"
    first, *_ = Path(recorded / "mine.measured.jsonl").read_text().splitlines()
    other.write_text(first.replace("request-", "nobody-"))
    for flags, words in (
        (["--measured", str(other)], "name it with --requests"),
        (["--requests", trace, "--measured", str(other)], "holds no request of"),
        (["--requests", trace, "--measured", str(bad)], "bad.jsonl:1: Object missing required"),
        (["--requests", trace, "--measured", str(tmp_path / "none")], "cannot read"),
    ):
        assert calibrate.main([steps, "-o", str(tmp_path / "out"), *flags]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.example
def test_a_trace_without_measured_times_still_groups_rounds(tmp_path: Path) -> None:
    requests = [
        Request(request_id="a", arrival_s=0.0, prompt_tokens=3, output_tokens=4, domain="code")
    ]
    write_trace(tmp_path / "t.jsonl", requests, source="test", command="test")
    found = read_served(str(tmp_path / "t.jsonl"))
    assert found.measured is None
    assert found.requests["a"] == Served(domain="code", output_tokens=4)
