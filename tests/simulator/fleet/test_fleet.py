"""The command with a fleet: the ``fleet`` key, ``--router``, and what the results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from simulator.run import main

ROOT = Path(__file__).resolve().parents[3]
FLEET = {
    "router": "power-of-two",
    "failures": {"mean_time_between_s": 20.0, "restart_s": 5.0},
    "shed": {},
    "pools": [
        {"replicas": 1, "autoscale": {"target_in_flight": 4.0, "most": 3, "startup_s": 5.0}},
        {"replicas": 1, "cost_model": "h100-qwen3-14b-analytic"},
    ],
}


def configured(folder: Path, fleet: Any) -> Path:
    lines = (ROOT / "traces" / "chat.jsonl").read_text().splitlines()[:150]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("prefix_hashes", None)
    trace = folder / "short.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "fleet.json"
    config = {"trace": str(trace), "policies": ["fixed", "global"], "rate": 4.0, "fleet": fleet}
    path.write_text(json.dumps(config))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.law
def test_a_fleet_from_a_file_adds_up_and_its_result_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    config = configured(tmp_path, FLEET)
    assert main(["--config", str(config), "--out", str(first), "--jobs", "2", "--check"]) == 0
    assert "sent again because their replica failed" in capsys.readouterr().out
    summary = json.loads((first / "summary.json").read_text())
    assert (summary["replicas"], summary["gpus"]) == (2, 2)
    for row in summary["policies"]:
        parts = ("completed", "truncated", "rejected", "shed", "unfinished")
        assert sum(row[name] for name in parts) == row["requests"] == 150
        assert row["retried"] > 0
        assert 1 < row["replicas_mean"] <= row["replicas_most"] <= 4
        assert row["capacity_req_s"] is None, "a fleet that changes has no one capacity"
    retries = pq.read_table(first / "requests.parquet")["retries"].to_numpy()
    assert (retries > 0).sum() == sum(row["retried"] for row in summary["policies"])
    repeat = ["--config", str(first / "config.json"), "--out", str(again), "--jobs", "1"]
    assert main(repeat) == 0
    assert contents(first) == contents(again)


@pytest.mark.example
def test_the_router_flag_overrides_the_file(tmp_path: Path) -> None:
    config = configured(tmp_path, {"report_interval_s": 0.5})
    flags = ["--router", "least-loaded", "--replicas", "2", "--out", str(tmp_path / "out")]
    assert main(["--config", str(config), *flags]) == 0
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept["fleet"]["router"] == "least-loaded"
    assert kept["fleet"]["report_interval_s"] == 0.5
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["policies"][0]
    assert row["capacity_req_s"] is not None


@pytest.mark.example
@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({"routers": "least-loaded"}, "unknown key 'routers'; did you mean 'router'?"),
        ({"pools": [{"replica": 1}]}, "unknown key 'replica'; did you mean 'replicas'?"),
        ({"failures": {"restart_s": 1.0, "mtbf": 5.0}}, "unknown key 'mtbf'"),
        ({"failures": {"mean_time_between_s": 5.0}}, "restart_s"),
        ({"router": "fastest"}, "router 'fastest' is unknown"),
        ({"pools": [{"cost_model": "h300"}]}, "no cost model 'h300'"),
    ],
)
def test_a_wrong_fleet_ends_with_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fleet: Any, words: str
) -> None:
    config = configured(tmp_path, fleet)
    out = tmp_path / "out"
    assert main(["--config", str(config), "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert not out.exists()


@pytest.mark.example
def test_an_unknown_router_flag_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, {})
    assert main(["--config", str(config), "--router", "best", "--out", str(tmp_path / "o")]) == 2
    assert "router 'best' is unknown; known: round-robin" in capsys.readouterr().err
