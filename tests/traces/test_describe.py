"""The figures of a trace, worked by hand, and the command that shows them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import traces
from traces import Request, Trace, build_trace, write_trace
from traces.describe import main, table
from traces.statistics import statistics

ROOT = Path(traces.__file__).parents[1]


def trace_of(*rows: dict[str, Any], block_tokens: int | None = None) -> Trace:
    defaults = {"prompt_tokens": 100, "output_tokens": 10}
    requests = [Request(request_id=f"r{k}", **(defaults | row)) for k, row in enumerate(rows)]
    return build_trace(
        requests, name="t", path="t", sha256="0", block_tokens=block_tokens, where=str
    )


@pytest.mark.example
def test_burstiness_as_worked_by_hand() -> None:
    # Gaps 1, 1, 10: mean 4, variance 18. Whole windows of 1 s over 12 s: 1 1 1 and nine empty.
    arrivals = statistics(trace_of(*({"arrival_s": t} for t in (5, 6, 7, 17)))).arrivals
    assert arrivals.span_s == 12
    assert arrivals.rate_req_s == 0.25
    assert arrivals.interarrival_cv == pytest.approx(18**0.5 / 4)
    assert arrivals.dispersion == {"1s": pytest.approx((0.25 - 0.0625) / 0.25)}
    assert arrivals.busiest_10s == 3
    assert arrivals.mean_10s == 2.5


@pytest.mark.example
def test_reuse_counts_what_an_earlier_request_brought_in() -> None:
    figures = statistics(
        trace_of(
            {"arrival_s": 0, "prompt_tokens": 250, "prefix_hashes": [1, 2, 3]},
            {"arrival_s": 1, "prompt_tokens": 250, "prefix_hashes": [1, 2, 3]},
            {"arrival_s": 2, "prompt_tokens": 200, "prefix_hashes": [1, 9]},
            {"arrival_s": 3, "prompt_tokens": 50},
            block_tokens=100,
        )
    ).prefix
    assert (figures.blocks, figures.different_blocks) == (8, 4)
    # The third block of 250 tokens holds only 50: listed twice, and shared by nobody.
    assert figures.hit_share == 3 / 8
    assert figures.hit_tokens_share == pytest.approx((100 + 100 + 100) / 750)


@pytest.mark.example
def test_sessions_and_domains_count_only_those_that_have_one() -> None:
    figures = statistics(
        trace_of(
            {"arrival_s": 0, "session_id": "a", "domain": "chat", "slo": "relaxed"},
            {"arrival_s": 1},
            {"arrival_s": 4, "session_id": "a", "domain": "chat"},
            {"arrival_s": 6, "session_id": "b", "domain": "code", "output_tokens": 40},
            {"arrival_s": 10, "session_id": "a"},
        )
    )
    sessions = figures.sessions
    assert (sessions.requests, sessions.sessions, sessions.turns_max) == (4, 2, 3)
    assert (sessions.turns_mean, sessions.gap_p50_s) == (2, 5)
    assert {name: d.requests for name, d in figures.domains.items()} == {"chat": 2, "code": 1}
    assert figures.domains["code"].output_tokens_mean == 40
    assert figures.slo == {"relaxed": 1}
    assert figures.prefix.hit_share is None


@pytest.mark.law
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    times=st.lists(st.floats(0, 500), min_size=1, max_size=60).map(sorted),
    shift_s=st.floats(0, 100).map(lambda s: round(s * 64) / 64),
)
def test_figures_do_not_depend_on_when_the_trace_starts(times: list[float], shift_s: float) -> None:
    # Sixty-fourths add without rounding, so that no request changes its window.
    exact = [round(t * 64) / 64 for t in times]
    one = statistics(trace_of(*({"arrival_s": t} for t in exact)))
    two = statistics(trace_of(*({"arrival_s": t + shift_s} for t in exact)))
    assert one == two
    assert table(one, source="x").startswith("t: ")


@pytest.mark.example
@pytest.mark.parametrize("kind", ["one", "together", "many"])
def test_even_the_smallest_traces_are_described_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "one":
        rows: list[dict[str, Any]] = [{"arrival_s": 3}]
    elif kind == "together":
        rows = [{"arrival_s": 3, "prefix_hashes": [1], "prompt_tokens": 64} for _ in range(5)]
    else:
        rows = [{"arrival_s": k * 0.7, "domain": f"d{k % 9}"} for k in range(300)]
    defaults = {"prompt_tokens": 64, "output_tokens": 10}
    requests = [Request(request_id=f"r{k}", **(defaults | row)) for k, row in enumerate(rows)]
    path = tmp_path / "t.jsonl"
    write_trace(path, requests, source="by hand", command="x", block_tokens=64)
    assert main([str(path), "-o", str(tmp_path / "t.png")]) == 0
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert "by hand" in capsys.readouterr().out
    assert main([str(path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["requests"] == len(rows)
    assert figures["prompt_tokens"]["quantiles"][0] == [0.0, 64.0]


@pytest.mark.example
@pytest.mark.parametrize(
    ("name", "sentence"),
    [("t.xyz", "t.xyz: a picture ends in .png"), ("no/t.png", "t.png: cannot write: No such file")],
)
def test_a_picture_that_cannot_be_written_ends_in_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    request = Request(request_id="a", arrival_s=0, prompt_tokens=1, output_tokens=1)
    write_trace(tmp_path / "t.jsonl", [request], source="x", command="x")
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / "t.jsonl"), "-o", str(tmp_path / name)]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.example
def test_loading_a_trace_needs_no_plotting() -> None:
    code = (
        "import sys, traces, traces.describe, traces.synthesize; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
