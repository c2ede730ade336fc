"""What the capacity report refuses, each in one sentence, and how it writes numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.capacity import command as capacity
from analysis.capacity.words import number
from traces import Request, write_trace

FILES = ["report.html", "report.json", "report.pdf"]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three requests."""
    path = tmp_path_factory.mktemp("traces") / "short.jsonl"
    requests = [
        Request(request_id=f"r{i}", arrival_s=float(i), prompt_tokens=20, output_tokens=5)
        for i in range(3)
    ]
    write_trace(path, requests, source="test", command="none", seed=5)
    return path


@pytest.mark.example
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{tmp}/nowhere.jsonl", "-o", "{tmp}/out"], "cannot read"),
        (["{tmp}", "-o", "{tmp}/out"], "summary.json: cannot read"),
        (["{trace}", "--slo", "quick", "-o", "{tmp}/out"], "--slo quick"),
        (["{trace}", "--slo", "interactiv", "-o", "{tmp}/out"], "did you mean interactive?"),
        (["{trace}", "--attainment", "0", "-o", "{tmp}/out"], "must lie in (0, 1]"),
        (["{trace}", "--attainment", "1.1", "-o", "{tmp}/out"], "must lie in (0, 1]"),
        (["{trace}", "--attainment", "90", "-o", "{tmp}/out"], "must lie in (0, 1]"),
        (["{trace}", "--cost-per-gpu-hour", "-2", "-o", "{tmp}/out"], "above 0"),
        (["{trace}", "--cost-per-gpu-hour", "nan", "-o", "{tmp}/out"], "above 0"),
        (["{trace}", "--rate", "1", "0", "-o", "{tmp}/out"], "rate 0 must be"),
        (["{trace}", "--req-s", "0", "-o", "{tmp}/out"], "--req-s 0 must be"),
        (["{trace}", "--rate", "1", "--req-s", "2", "-o", "{tmp}/out"], "not allowed with"),
        (["{trace}", "--gpus", "0", "-o", "{tmp}/out"], "--gpus 0: a replica"),
        (["{trace}", "--cost-model", "b300x4-dsv4-flash-vllm", "--gpus", "6", "-o", "{tmp}/out"],
         "takes 4; give a multiple"),
        (["{trace}", "--jobs", "0", "-o", "{tmp}/out"], "--jobs 0"),
        (["{trace}", "--policy", "globl", "-o", "{tmp}/out"], "did you mean 'global'?"),
        (["{trace}", "--policy", "none", "--policy-file", "{tmp}/p.json", "-o", "{tmp}/out"],
         "p.json: cannot read"),
        (["{trace}", "--cost-model", "h300", "-o", "{tmp}/out"], "no cost model 'h300'"),
        (["{trace}", "-o", "{trace}"], "cannot make the folder"),
        (["{trace}", "-o", "{trace}/out"], "cannot make the folder"),
        (["{trace}"], "required: -o"),
        (["{trace}", "--colour", "-o", "{tmp}/out"], "--colour"),
    ],
)  # fmt: skip
def test_a_wrong_request_gets_one_sentence_and_leaves_nothing(
    trace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    filled = [part.format(tmp=tmp_path, trace=trace) for part in arguments]
    assert capacity.main(filled) == 2
    printed, error = capsys.readouterr()
    assert says in error
    assert error.count("\n") == 1
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.example
def test_a_trace_without_a_rate_is_no_traffic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [
        Request(request_id=f"r{i}", arrival_s=1.0, prompt_tokens=20, output_tokens=5)
        for i in range(3)
    ]
    path = tmp_path / "burst.jsonl"
    write_trace(path, requests, source="test", command="none", seed=5)
    before = sorted(tmp_path.iterdir())
    assert capacity.main([str(path), "-o", str(tmp_path / "out")]) == 2
    assert "all requests arrive at once" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.example
def test_a_trace_too_short_to_tell_says_at_least(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "tuned <b>&.json"
    policy.write_text('{"schema_version": 1, "policy": "global", "parameters": {}}')
    flags = ["--policy", "none", "--policy-file", str(policy), "--rate", "1", "--jobs", "1"]
    assert capacity.main([str(trace), *flags, "-o", str(tmp_path / "out")]) == 0
    assert "holds at least 64 requests/s" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "too short to saturate" in page
    assert "tuned &lt;b&gt;&amp;" in page  # whatever a file is called is text
    assert "<b>" not in page


@pytest.mark.example
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_written_is_found_before_the_work(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    assert capacity.main([str(trace), "-o", str(tmp_path / "out")]) == 2
    assert "not a plain file" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.example
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0.0, "0"), (9.86, "9.86"), (12.345, "12.3"), (999.9, "1,000"),
        (1234.5, "1,230"), (0.000123, "0.000123"), (1.0, "1"), (0.99999, "1"), (-2.5, "-2.5"),
    ],
)  # fmt: skip
def test_numbers_are_shown_to_three_digits_without_exponents(
    value: float | None, shown: str
) -> None:
    assert number(value) == shown
