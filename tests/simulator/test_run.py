"""The command: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from simulator.run import main
from tests.waiting import HUNG_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ["none", "fixed", "threshold:0.6", "early_stop", "global", "sglang", "goodput"]
FILES = ["batches.parquet", "config.json", "requests.parquet", "summary.json"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The first 150 requests of the shipped chat trace, without its sidecar's prefixes."""
    path = tmp_path / "short.jsonl"
    lines = (ROOT / "traces" / "chat.jsonl").read_text().splitlines()[:150]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("prefix_hashes", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.example
def test_the_default_run_compares_every_policy(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(trace), "--out", str(out), "--jobs", "1", "--check", "--steps"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[5 : 5 + len(POLICIES)]] == POLICIES
    assert "below saturation" in printed
    assert "*" in printed
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "steps.parquet"])
    requests = pq.read_table(out / "requests.parquet")
    assert requests.num_rows == len(POLICIES) * 150
    assert set(requests["status"].to_pylist()) == {"completed"}
    steps = pq.read_table(out / "steps.parquet").filter(pc.field("kind") == "decode")
    assert set(steps["policy"].to_pylist()) == set(POLICIES)
    batches = pq.read_table(out / "batches.parquet")
    for policy in POLICIES:
        one, all_of = (t.filter(pc.field("policy") == policy) for t in (batches, steps))
        assert pc.sum(one["steps"]).as_py() == all_of.num_rows
        assert pc.sum(one["committed_tokens"]) == pc.sum(all_of["committed_tokens"])
        verified = pc.sum(all_of["verify_tokens"]).as_py() + pc.sum(all_of["requests"]).as_py()
        assert pc.sum(one["verified_tokens"]).as_py() == verified
        assert pc.sum(one["seconds"]).as_py() == pytest.approx(pc.sum(all_of["duration_s"]).as_py())


@pytest.mark.example
def test_json_prints_one_object_with_the_documented_fields(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cost-model", "h200-qwen3-4b-analytic", "--policy", "global"]
    status = main([str(trace), "--json", *flags, "--out", str(tmp_path / "o")])
    found = json.loads(capsys.readouterr().out)
    assert status == 0
    assert found.keys() >= {"trace", "cost_model", "acceptance", "seed", "gpus", "policies"}
    row = found["policies"][0]
    assert row.keys() >= {
        "policy", "requests", "completed", "output_tok_s", "tok_s_user_p50", "ttft_ms", "tpot_ms",
        "itl_ms", "e2e_ms", "slo_attainment", "slo_goodput_req_s", "accept_len_mean",
        "drafted_share", "verify_tokens_per_request_step", "steps", "utilisation", "saturated",
        "cpu_s",
    }  # fmt: skip
    assert row["ttft_ms"].keys() == row["itl_ms"].keys() == {"p50", "p90", "p99"}
    assert row["completed"] == 150


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.law
def test_the_result_folder_is_the_same_bytes_for_any_number_of_jobs(
    trace: Path, tmp_path: Path
) -> None:
    for jobs in ("1", "2"):
        flags = ["--policy", "fixed", "--policy", "global", "--seed", "3"]
        assert main([str(trace), *flags, "--jobs", jobs, "--out", str(tmp_path / jobs)]) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.law
@pytest.mark.parametrize("load", [["--rate", "3"], ["--concurrency", "2,4"]])
def test_a_result_s_config_repeats_the_run(load: list[str], trace: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    flags = ["--policy", "fixed:2", *load, "--slo", "300:9"]
    assert main([str(trace), *flags, "--out", str(first)]) == 0
    assert main(["--config", str(first / "config.json"), "--out", str(again)]) == 0
    assert contents(first) == contents(again)


@pytest.mark.filterwarnings("ignore:up to")  # how many run at a time does not matter here
@pytest.mark.example
def test_a_policy_file_with_calibration_replays(trace: Path, tmp_path: Path) -> None:
    policy = tmp_path / "tuned.json"
    calibration = {"temperatures": [1.2] * 7, "biases": [-0.1] * 7}
    policy.write_text(
        json.dumps({"schema_version": 1, "policy": "global", "calibration": calibration})
    )
    flags = ["--policy", str(policy), "--policy", "global", "--rate", "40"]
    assert main([str(trace), *flags, "--out", str(tmp_path / "o")]) == 0
    rows = json.loads((tmp_path / "o" / "summary.json").read_text())["policies"]
    assert [row["policy"] for row in rows] == ["tuned", "global"]
    verified = [row["whole_run"]["verify_tokens_per_request_step"] for row in rows]
    assert verified[0] < verified[1], "lower confidences must verify less"


GOOD_LINE = '{"request_id":"a","arrival_s":0,"prompt_tokens":9,"output_tokens":3}\n'


def refuse(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], *parts: str
) -> None:
    """The command exits with 2, one line on stderr naming ``parts``, and leaves no result."""
    before = sorted(p for p in folder.rglob("*") if "given" not in p.parts)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]
    assert sorted(p for p in folder.rglob("*") if "given" not in p.parts) == before


@pytest.mark.example
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no request"]),
        (GOOD_LINE + '{"request_id":"b","arr', [":2"]),
        ('{"request_id":"a","arrival_s":0,"prompt_tokens":9}\n', [":1", "output_tokens"]),
        (GOOD_LINE.replace(":9", ":-9"), [":1", "-9", "prompt_tokens"]),
        (GOOD_LINE.replace(":9", ":NaN"), [":1"]),
        (GOOD_LINE.replace('"arrival_s":0', '"arrival_s":1e999'), [":1"]),
        (GOOD_LINE.replace(":3", ":0"), [":1", "output_tokens"]),
        (GOOD_LINE.replace(":3", ":3.5"), [":1", "output_tokens"]),
        (GOOD_LINE.replace(":0", ":5") + GOOD_LINE.replace('"a"', '"b"'), [":2", "arrival_s"]),
        (GOOD_LINE + GOOD_LINE, [":2", "'a'"]),
        (GOOD_LINE.replace("}", ',"tempreature":1}'), [":1", "tempreature", "temperature"]),
        (GOOD_LINE.replace("}", ',"prefix_hashes":[1]}'), ["block_tokens"]),
        (GOOD_LINE.replace("}", ',"slo":"hurried"}'), ["hurried", "interactive"]),
        (GOOD_LINE.replace(":9", ":900000000"), ["no request fits", "900000000"]),
        ("\ufeff\x00", [":1"]),
    ],
)
def test_a_wrong_trace_is_one_sentence_and_status_2(
    text: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(text, encoding="utf-8")
    flags = ["--out", str(tmp_path / "out"), "--jobs", "1"]
    refuse(capsys, tmp_path, [str(path), *flags], "wrong.jsonl", *parts)


@pytest.mark.example
@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--policy", "globl"], ["globl", "global", "early_stop"]),
        (["--policy", "fixed:9"], ["fixed:9", "7"]),
        (["--policy", "fixed:x"], ["fixed:x"]),
        (["--policy", "threshold:1.5"], ["1.5", "between 0 and 1"]),
        (["--policy", "none:3"], ["none:3"]),
        (["--policy", "fixed", "--policy", "fixed"], ["fixed", "twice"]),
        (["--policy", "absent.json"], ["absent.json"]),
        (["--cost-model", "h100"], ["h100", "h100-qwen3-8b-analytic"]),
        (["--acceptance", "dspark"], ["dspark", "dspark-qwen3-4b"]),
        (["--slo", "fast"], ["fast", "interactive"]),
        (["--slo=-5:3"], ["-5:3", "above 0"]),
        (["--rate", "0"], ["0", "above 0"]),
        (["--rate", "nan"], ["nan"]),
        (["--concurrency", "0"], ["0", "at least 1"]),
        (["--concurrency", "4,4"], ["4", "twice"]),
        (["--replicas", "0"], ["0", "at least 1"]),
        (["--seed", "-1"], ["-1"]),
        (["--jobs", "0"], ["0", "at least 1"]),
        (["--replicas", "10000"], ["10000", "at most 1024"]),
        (["--rate", "1e308"], ["1e+308", "1e+06"]),
        (["--rate", "6.5", "--concurrency", "64"], ["rate 6.5", "concurrency 64", "drop one"]),
        (["--seed", "one"], ["--seed", "'one'"]),
        (["--polcy", "none"], ["--polcy", "--help"]),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_status_2(
    flags: list[str], parts: list[str], trace: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    refuse(capsys, tmp_path, [str(trace), *flags, "--out", str(tmp_path / "out")], *parts)


@pytest.mark.example
@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"trace": "x.jsonl", "polices": []}, ["polices", "policies"]),
        ({"trace": "x.jsonl", "engine": {"page_size": 0}}, ["page_size", "at least 1"]),
        ({"trace": "x.jsonl", "engine": {"page_sise": 1}}, ["page_sise", "page_size"]),
        ({"trace": "x.jsonl", "rate": "fast"}, ["rate"]),
        ({"policies": ["none"]}, ["trace"]),
        ([], ["config.json"]),
    ],
)
def test_a_wrong_configuration_names_the_key(
    value: Any, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value))
    refuse(capsys, tmp_path, ["--config", str(path), "--out", str(tmp_path / "out")], *parts)


@pytest.mark.example
def test_a_cost_model_with_decreasing_probes_is_refused(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = ROOT / "sglang_dspark" / "cost_models" / "b300x4-dsv4-flash-vllm.json"
    model = json.loads(shipped.read_text())
    model["table"]["seconds"][5] = model["table"]["seconds"][4] / 2
    path = tmp_path / "noisy.json"
    path.write_text(json.dumps(model))
    flags = ["--cost-model", str(path), "--out", str(tmp_path / "out")]
    refuse(capsys, tmp_path, [str(trace), *flags], "noisy.json", "must not decrease", "tokens")


@pytest.mark.example
def test_missing_directory_and_unwritable_targets_are_refused(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(capsys, tmp_path, [str(tmp_path / "absent.jsonl")], "absent.jsonl", "No such file")
    refuse(capsys, tmp_path, [str(tmp_path)], str(tmp_path))
    blocked = str(trace / "out")  # below a file
    refuse(capsys, tmp_path, [str(trace), "--out", blocked], "Not a directory")
    refuse(capsys, tmp_path, [], "no trace given")


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "simulator.run", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@pytest.mark.example
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_full_disk_leaves_the_earlier_result_alone(
    jobs: str, trace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main([str(trace), "--policy", "fixed", "--out", str(out)]) == 0
    before = contents(out)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    flags = ["--seed", "1", "--policy", "fixed", "--policy", "none", "--jobs", jobs]
    process = command(str(trace), *flags, "--force", "--out", str(out), preexec_fn=limit)
    _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 2, errors
    assert "cannot write" in errors.splitlines()[-1]
    assert contents(out) == before


@pytest.mark.example
def test_another_run_never_replaces_a_result_unasked(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed, plain = ([str(trace), "--policy", name, "--jobs", "1"] for name in ("fixed", "none"))
    assert main(fixed) == 0
    before = contents(tmp_path / "results" / "short")
    assert main(plain) == 0
    assert "Wrote results/short-2/summary.json" in capsys.readouterr().out
    assert main(fixed) == 0  # the same run: the same bytes
    assert contents(tmp_path / "results" / "short") == before
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["short", "short-2"]
    assert main([*plain, "--out", "results/short"]) == 2
    assert "another run, with another policies, is kept there" in capsys.readouterr().err
    assert contents(tmp_path / "results" / "short") == before
    assert main([*plain, "--out", "results/short", "--force"]) == 0
    assert contents(tmp_path / "results" / "short") == contents(tmp_path / "results" / "short-2")


@pytest.mark.example
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_leaves_a_partial_result_marked_as_such(
    jobs: str, number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = command(
        "traces/mixed.jsonl", "--out", str(out), "--jobs", jobs, "--policy", "global",
        "--policy", "fixed", "--concurrency", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
    )  # fmt: skip
    wait_until(lambda: len(list(out.glob("parts.tmp/requests-*"))) > 2, process)
    os.kill(process.pid, number)
    printed, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "INTERRUPTED" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert 0 < len(summary["policies"]) <= 32
    for row in summary["policies"]:
        name = f"{row['policy']} (partial)" if row["unfinished"] else f"{row['policy']} "
        assert name in printed
    assert not any("(partial)" in line and "*" in line for line in printed.splitlines())
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert pq.read_table(out / "requests.parquet").num_rows > 0


@pytest.mark.filterwarnings("ignore:up to")  # how many run at a time does not matter here
@pytest.mark.example
@pytest.mark.filterwarnings("ignore:cost model")
def test_where_there_is_no_steady_state_there_is_no_figure(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--policy", "global", "--policy", "none", "--jobs", "1"]
    assert main([str(trace), *flags, "--concurrency", "4,60", "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert "concurrency 60: no steady state: 60 clients take at least 180 requests" in printed
    rows = json.loads((tmp_path / "o" / "summary.json").read_text())["policies"]
    assert [row["output_tok_s"] is None for row in rows] == [False, False, True, True]
    assert rows[0]["requests_in_system_mean"] == pytest.approx(4.0, rel=1e-6)
    lines = trace.read_text().splitlines()
    one = tmp_path / "one.jsonl"
    one.write_text(lines[0] + "\n")
    assert main([str(one), *flags, "--out", str(tmp_path / "p")]) == 0
    assert "nothing to tell the policies apart by." in capsys.readouterr().out


@pytest.mark.example
@pytest.mark.filterwarnings("ignore:cost model")
def test_a_first_request_that_fits_nowhere_is_rejected_alone(trace: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    lines[0]["prompt_tokens"] = 9_000_000
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(trace), "--policy", "none", "--jobs", "1", "--out", str(tmp_path / "o")]) == 0
    (row,) = json.loads((tmp_path / "o" / "summary.json").read_text())["policies"]
    assert (row["rejected"], row["completed"]) == (1, 149)


@pytest.mark.example
def test_a_current_file_is_not_taken_for_a_policy_of_its_name(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "global.json"
    file.write_text('{"schema_version": 1, "policy": "threshold", "parameters": {}}')
    flags = ["--policy", "global", "--current", str(file), "--out", str(tmp_path / "o")]
    assert main([str(trace), *flags]) == 2
    assert "'global' twice; list it once or rename its file" in capsys.readouterr().err
