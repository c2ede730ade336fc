"""Synthetic traces: determinism, arrivals, conversations, wrong mixtures, shipped files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from traces import load_trace, read_requests
from traces.draws import arrival_times, choose, lengths, stream, values
from traces.mixture import (
    Bursty,
    Diurnal,
    Gamma,
    Lognormal,
    Mixture,
    Poisson,
    Quantiles,
    load_mixture,
)
from traces.statistics import statistics, window_counts
from traces.synthesize import main, synthesize

FOLDER = Path(traces.__file__).parent
SHIPPED = ("chat", "code", "math", "mixed")


def small(**changes: Any) -> dict[str, Any]:
    """A mixture of one domain with conversations, as its file would hold it."""
    domain = {
        "name": "chat",
        "share": 1,
        "measured": "nothing",
        "arrivals": {"process": "poisson"},
        "prompt_tokens": {"kind": "lognormal", "median": 400, "sigma": 0.8, "most": 4000},
        "output_tokens": {"kind": "quantiles", "table": [[0, 1], [1, 99]]},
        "sessions": {
            "follow_up_share": 0.7,
            "gap_s": {"kind": "lognormal", "median": 10, "sigma": 0.5, "most": 60},
            "new_tokens": {"kind": "lognormal", "median": 40, "sigma": 0.5, "most": 400},
        },
        "system_prompts": [{"tokens": 130, "share": 0.5}],
    }
    mixture = {
        "statistics_from": [],
        "licence": "none",
        "rate_req_s": 3,
        "minutes": 4,
        "block_tokens": 64,
        "domains": [domain | changes.pop("domain", {})],
    }
    return mixture | changes


def built(**changes: Any) -> Mixture:
    return msgspec.convert(small(**changes), Mixture)


@pytest.mark.law
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0.2, 5),
    follow_up=st.floats(0, 0.99),
    kept=st.floats(0, 1),
)
def test_a_follow_up_holds_all_that_was_said_before(
    seed: int, rate: float, follow_up: float, kept: float
) -> None:
    sessions = small()["domains"][0]["sessions"]
    sessions |= {"follow_up_share": follow_up, "kept_output_share": kept}
    requests = synthesize(built(rate_req_s=rate, domain={"sessions": sessions}), seed=seed)
    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)
    last: dict[str, Any] = {}
    for request in requests:
        assert request.session_id is not None
        blocks = request.prefix_hashes or []
        assert len(blocks) == request.prompt_tokens // 64
        before = last.get(request.session_id)
        if before is not None:
            said = before.prompt_tokens + int(kept * before.output_tokens)
            assert request.prompt_tokens > said
            assert request.arrival_s > before.arrival_s
            held = before.prefix_hashes or []
            assert blocks[: len(held)] == held
        last[request.session_id] = request


@pytest.mark.law
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_requests_and_another_seed_others(seed: int) -> None:
    assert synthesize(built(), seed=seed) == synthesize(built(), seed=seed)
    assert synthesize(built(), seed=seed) != synthesize(built(), seed=seed + 1)


@pytest.mark.law
@settings(max_examples=60, deadline=None)
@given(
    process=st.sampled_from(
        [
            Poisson(),
            Gamma(cv=0.3),
            Gamma(cv=4.0),
            Diurnal(amplitude=1.0, period_s=50, peak_s=7),
            Bursty(burst_share=0.02, burst_s=500),
            Bursty(burst_share=0.3, burst_s=3, quiet_ratio=0.2, cv=2.0),
        ]
    ),
    seed=st.integers(0, 2**40),
    rate=st.floats(0.1, 50),
    span_s=st.floats(0.5, 300),
)
def test_arrivals_are_sorted_and_inside_the_span(
    process: Poisson | Gamma | Diurnal | Bursty, seed: int, rate: float, span_s: float
) -> None:
    times = arrival_times(process, rate_req_s=rate, span_s=span_s, rng=stream(seed, "x"))
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= span_s)).all()


@pytest.mark.law
@pytest.mark.parametrize("cv", [0.25, 1.0, 3.0])
def test_gamma_gaps_have_the_variation_asked_for(cv: float) -> None:
    times = arrival_times(Gamma(cv=cv), rate_req_s=10, span_s=20_000, rng=stream(1, "x"))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(200_000, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.law
def test_poisson_counts_vary_like_their_mean_and_bursts_more() -> None:
    def dispersion(process: Poisson | Bursty) -> float:
        times = arrival_times(process, rate_req_s=5, span_s=40_000, rng=stream(2, "x"))
        counts = window_counts(times, 10.0)[:-1]
        return float(counts.var() / counts.mean())

    assert dispersion(Poisson()) == pytest.approx(1, abs=0.08)
    # Interrupted Poisson, windows of T: 1 + 2 m t (1 - (1 - exp(-T / t)) t / T), m = rate (1-p)/p,
    # t = burst_s (1 - p) the time in which the state is forgotten.
    share, relax_s = 0.2, 8.0
    grown = 2 * 5 * (1 - share) / share * relax_s
    expected = 1 + grown * (1 - (1 - np.exp(-10 / relax_s)) * relax_s / 10)
    assert dispersion(Bursty(burst_share=0.2, burst_s=10)) == pytest.approx(expected, rel=0.1)


@pytest.mark.example
def test_a_diurnal_rate_peaks_when_told() -> None:
    process = Diurnal(amplitude=0.8, period_s=1000, peak_s=300)
    times = arrival_times(process, rate_req_s=50, span_s=1000, rng=stream(3, "x"))
    counts = window_counts(np.concatenate([[0.0], times]), 100.0)
    # The peak and the trough, at 300 and 800 s, are each an edge between two windows.
    assert int(counts.argmax()) in (2, 3)
    assert int(counts.argmin()) in (7, 8)
    assert counts.max() / counts.min() == pytest.approx(1.75 / 0.25, rel=0.35)


@pytest.mark.example
def test_distributions_invert_as_worked_by_hand() -> None:
    table = Quantiles(table=[(0, 10), (0.5, 20), (1, 120)])
    assert values(table, np.array([0, 0.25, 0.75, 1])).tolist() == [10, 15, 70, 120]
    lognormal = Lognormal(median=100, sigma=1, most=250)
    drawn = values(lognormal, np.array([0.0, 0.5, 0.8413447460685429, 0.99]))
    assert drawn[1:] == pytest.approx([100, 250, 250])
    assert drawn[0] >= 0
    assert lengths(Quantiles(table=[(0, 0), (1, 0.2)]), np.array([0.1])).tolist() == [1]
    picked = choose([("a", 0.25), ("b", 0.5)], np.array([0, 0.24, 0.25, 0.74, 0.75, 0.99]))
    assert picked == ["a", "a", "b", "b", None, None]


@pytest.mark.law
def test_lengths_follow_the_table_they_were_given() -> None:
    mixture, _ = load_mixture("chat")
    asked = mixture.domains[0].prompt_tokens
    assert isinstance(asked, Quantiles)
    trace = load_trace(FOLDER / "chat.jsonl")
    for probability, tokens in asked.table:
        if 0.05 <= probability <= 0.95:
            below = float((trace.prompt_tokens <= tokens).mean())
            # Three standard errors of a share, and the share of one rounded value.
            assert below == pytest.approx(probability, abs=3 * 0.5 / len(trace) ** 0.5 + 0.01)


@pytest.mark.golden
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_trace_is_what_its_sidecar_says(name: str) -> None:
    trace = load_trace(FOLDER / f"{name}.jsonl")
    figures = statistics(trace)
    assert len(trace) >= 3000
    assert figures.arrivals.span_s >= 1800
    assert (FOLDER / f"{name}.jsonl").stat().st_size < 1_000_000
    assert set(trace.domain_names) == ({"chat", "code", "math"} if name == "mixed" else {name})
    assert (trace.n_blocks > 0) == (name in ("chat", "mixed"))


@pytest.mark.golden
@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_in_the_sidecar_makes_the_shipped_bytes(tmp_path: Path, name: str) -> None:
    meta = json.loads((FOLDER / f"{name}.meta.json").read_text())
    words = shlex.split(meta["command"])
    assert words[:3] == ["python", "-m", "traces.synthesize"]
    assert words[-2:] == ["-o", f"traces/{name}.jsonl"]
    made = tmp_path / f"{name}.jsonl"
    assert main([*words[3:-1], str(made)]) == 0
    assert made.read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes()
    remade = json.loads((tmp_path / f"{name}.meta.json").read_text())
    assert remade | {"command": meta["command"]} == meta


@pytest.mark.golden
def test_shipped_figures_stay_near_the_measured_ones() -> None:
    chat, code, math, mixed = (statistics(load_trace(FOLDER / f"{n}.jsonl")) for n in SHIPPED)
    assert chat.arrivals.interarrival_cv == pytest.approx(1.09, abs=0.05)
    assert chat.prompt_tokens.mean == pytest.approx(1155, rel=0.05)
    assert chat.output_tokens.mean == pytest.approx(211, rel=0.05)
    assert chat.prefix.hit_share == pytest.approx(0.366, abs=0.02)
    assert chat.sessions.gap_p50_s == pytest.approx(147, rel=0.1)
    assert code.arrivals.interarrival_cv == pytest.approx(13.2, rel=0.1)
    assert code.arrivals.dispersion["1s"] == pytest.approx(13.2, rel=0.2)
    assert code.arrivals.dispersion["10s"] == pytest.approx(71.6, rel=0.2)
    assert math.arrivals.interarrival_cv == pytest.approx(1.21, abs=0.05)
    assert math.output_tokens.mean == pytest.approx(845, rel=0.05)
    assert mixed.arrivals.dispersion["10s"] > 5
    assert mixed.sessions.turns_mean is not None
    assert mixed.sessions.turns_mean > 1.4


@pytest.mark.example
def test_options_replace_what_the_mixture_says(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps(small()))
    out = tmp_path / "t.jsonl"
    words = ["--mixture", str(own), "--rate", "8", "--minutes", "2", "--seed", "5", "-o", str(out)]
    assert main([*words, "--arrivals", "gamma", "--cv", "3"]) == 0
    requests, meta = read_requests(out)
    assert len(requests) == pytest.approx(960, rel=0.35)
    assert meta is not None
    assert meta.seed == 5
    assert meta.command.endswith("--arrivals gamma --cv 3")
    cv = statistics(load_trace(out)).arrivals.interarrival_cv
    assert cv == pytest.approx(3, rel=0.35)


WRONG_MIXTURES: list[tuple[dict[str, Any], str]] = [
    ({"rate_reqs": 3}, "unknown field `rate_reqs`; did you mean 'rate_req_s'"),
    (
        {"domain": {"arival": 3}},
        r"unknown field `arival` - at `\$.domains\[0\]`; did you mean 'arr",
    ),
    ({"rate_req_s": -1}, "rate_req_s -1.0 must be a number from"),
    ({"rate_req_s": 1e4, "minutes": 1e5}, "must be a number from 1 to 2e"),
    ({"domain": {"share": 0.5}}, r"domain shares \[0.5\] must add up to 1"),
    ({"domain": {"arrivals": {"process": "weibull"}}}, "Invalid value 'weibull'"),
    ({"domain": {"arrivals": {"process": "gamma"}}}, "missing required field `cv`"),
    ({"domain": {"arrivals": {"process": "gamma", "cv": 0}}}, "cv 0.0 must be a number"),
    (
        {"domain": {"prompt_tokens": {"kind": "quantiles", "table": [[0, 1], [0.9, 5]]}}},
        "must run from probability 0 to 1",
    ),
    (
        {"domain": {"prompt_tokens": {"kind": "quantiles", "table": [[0, 9], [1, 5]]}}},
        "values must not fall",
    ),
    ({"domain": {"slo": [["interactive", 0.7], ["relaxed", 0.4]]}}, "must not be negative nor exc"),
    ({"domain": {"slo": [["interactive"]]}}, "Expected `array` of length 2"),
    ({"block_tokens": None}, "chat: system_prompts need block_tokens"),
    ({"block_tokens": 0}, "block_tokens 0 must be a number from 1"),
]


@pytest.mark.example
@pytest.mark.parametrize(("change", "sentence"), WRONG_MIXTURES)
def test_a_wrong_mixture_is_refused_with_its_value(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(small(**change)))
    with pytest.raises(ValueError, match=sentence) as caught:
        load_mixture(str(path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.example
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mixture", "chatt"], "did you mean 'chat'"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--cv", "2"], "--cv needs --arrivals"),
        (["--arrivals", "gamma"], "--arrivals gamma needs --cv"),
        (["--rate", "nan"], "--rate or --minutes: rate_req_s nan must be a number"),
        (["--minutes", "0"], "--rate or --minutes: minutes 0.0 must be a number"),
    ],
)
def test_wrong_options_end_in_status_2_and_leave_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["-o", str(tmp_path / "t.jsonl"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("traces.synthesize: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
