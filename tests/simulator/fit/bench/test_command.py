"""``dspark prices calibrate``, and what run, tune and capacity make of its doubt."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from analysis.capacity.command import main as capacity
from sglang_dspark.core.costs.library import load_cost_model
from simulator.fit.bench.command import main
from simulator.run import main as run
from simulator.tune.command import main as tune
from tests.simulator.fit.bench.bench_scenes import MODEL, base, measured
from traces import Request, write_trace

HEAD = "policy,concurrency,prompt_tokens,output_tokens,requests,spread,output_tok_s,tpot_ms\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "sweep.csv"
    points = [measured(base(), "none", clients) for clients in (1, 32)]
    lines = [
        f"{p.policy},{p.concurrency},{p.prompt_tokens},{p.output_tokens},{p.requests},{p.spread},"
        f"{p.output_tok_s},{p.tpot_ms}"
        for p in points
    ]
    path.write_text(HEAD + "\n".join(lines))
    return path


@pytest.fixture(scope="module")
def mine(sweep: Path) -> Path:
    out = sweep.parent / "mine.json"
    assert main([MODEL, "--bench", str(sweep), "-o", str(out)]) == 0
    return out


def test_it_writes_a_model_with_what_is_left_of_the_doubt(
    mine: Path, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_cost_model(mine)
    assert model.doubt is not None
    assert model.doubt.basis == "posterior"
    assert "none at 32 clients" in model.doubt.note
    assert "calibrated by 2 benchmark runs" in model.provenance.source
    again = mine.with_name("again.json")
    assert main([MODEL, "--bench", f"none={sweep}", "-o", str(again)]) == 0
    assert load_cost_model(again).doubt == model.doubt  # the same bytes for the same inputs
    shown = capsys.readouterr().out
    assert "within" in shown
    assert "next: intervals of rates go from" in shown


def test_runs_that_were_used_already_are_said(
    mine: Path, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([str(mine), "--bench", str(sweep), "-o", str(tmp_path / "twice.json")]) == 0
    assert "what is given twice counts twice" in capsys.readouterr().err


def test_without_a_benchmark_it_holds_what_the_origin_deserves(tmp_path: Path) -> None:
    composed, stands_in = tmp_path / "a.json", tmp_path / "b.json"
    assert main([MODEL, "-o", str(composed)]) == 0
    assert main([MODEL, "--stands-in", "1x MI300X", "-o", str(stands_in)]) == 0
    doubts = [load_cost_model(path).doubt for path in (composed, stands_in)]
    assert [doubt and doubt.basis for doubt in doubts] == ["prior", "prior"]
    widths = [doubt.factor[0][0] for doubt in doubts if doubt]
    assert widths[1] > 2 * widths[0]
    assert load_cost_model(stands_in).provenance.hardware == "1x MI300X"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-model"], "no cost model"),
        ([MODEL, "--bench", "none=absent.csv"], "absent.csv"),
        ([MODEL, "--bench", "fixed:7={sweep}"], "drop one of the two"),
        ([MODEL, "--bench", "{sweep}", "--acceptance", "no-such"], "no acceptance profile"),
        ([MODEL, "--bench", "{sweep}", "-o", "{sweep}"], "sweep.csv"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    words: list[str], said: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    given = [word.format(sweep=sweep) for word in words]
    assert main([*given, *([] if "-o" in given else ["-o", str(out)])]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "small.jsonl"
    requests = [
        Request(
            request_id=str(i),
            arrival_s=0.05 * i,
            prompt_tokens=200 + 13 * (i % 7),
            output_tokens=30 + 5 * (i % 11),
        )
        for i in range(320)
    ]
    write_trace(path, requests, source="test", command="test")
    return path


def summary_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return found


def test_run_shows_intervals_and_its_figures_are_those_without_doubt(
    trace: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "mine.json"
    value = json.loads(mine.read_text())
    del value["doubt"]
    plain.write_text(json.dumps(value))
    words = ["--policy", "none", "--policy", "fixed:7", "--concurrency", "16", "--jobs", "1"]
    for model, out in ((mine, "a"), (plain, "b")):
        assert run([str(trace), *words, "--cost-model", str(model), "--out",
                    str(tmp_path / out)]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "With the doubt about prices, 90 %" in shown
    with_doubt, without = (json.loads((tmp_path / out / "summary.json").read_text())
                           for out in ("a", "b"))  # fmt: skip
    assert "prices_draws" not in without
    for ours, theirs in zip(with_doubt["policies"], without["policies"], strict=True):
        low, high = ours.pop("prices")["output_tok_s"]
        assert low < ours["output_tok_s"] < high
        assert ours == theirs
    (difference,) = with_doubt["differences"]
    gain, wide = difference["gain"], difference["gain"]["prices"]
    assert wide["low"] < gain["low"] < gain["high"] < wide["high"]


def test_tune_and_capacity_say_what_the_doubt_does(
    trace: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(trace), "--cost-model", str(mine), "--jobs", "1"]
    assert tune([*common, "--policy", "fixed", "--current", "none", "--concurrency", "8",
                 "--objective", "throughput", "--out", str(tmp_path / "t")]) == 0  # fmt: skip
    found = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert found["prices"]["low"] < found["gains"]["none"]["low"]
    assert "with the doubt about prices (90 %)" in capsys.readouterr().out
    words = ["--policy", "none", "--slo", "2000:40", "--rate", "1", "--out", str(tmp_path / "c")]
    assert capacity([*common, *words]) == 0
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    sizes = report["fleets"][0]["doubted_gpus"]
    assert len(sizes) == 6
    assert "doubt about prices" in " ".join(report["answer"]["sentences"])
