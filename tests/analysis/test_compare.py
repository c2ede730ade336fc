"""The comparison page: what it draws from real replays, its bytes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import compare
from analysis.compare import compare_page
from analysis.replays import load_replay, read_batch_profiles, read_requests
from analysis.series import make_series
from analysis.style import POLICY_LOOKS, SPARE_LOOKS, page_bytes, page_style
from simulator import run
from simulator.study.metrics import request_times
from traces import Request, write_trace

POLICIES = ("none", "fixed", "global")
LOADS = (1, 4, 16)


def _replay(out: Path, trace: Path, *flags: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MTP-1 priced as a block of 7 warns, rightly
        assert run.main([str(trace), "--out", str(out), "--jobs", "1", *flags]) == 0
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real replays of 60 requests: a sweep, its MTP-1 baseline, single loads, traced arrivals."""
    folder = tmp_path_factory.mktemp("replays")
    random = np.random.default_rng(5)
    requests = [
        Request(
            request_id=f"r{i}",
            arrival_s=0.1 * i,
            prompt_tokens=int(random.integers(20, 900)),
            output_tokens=int(random.integers(2, 120)),
            domain=("chat", "code", "math")[i % 3],
        )
        for i in range(60)
    ]
    trace = folder / "short.jsonl"
    write_trace(trace, requests, source="test", command="none", seed=5)
    policies = [part for name in POLICIES for part in ("--policy", name)]
    sweep = ("--concurrency", ",".join(map(str, LOADS)))
    mtp1 = ("--acceptance", "mtp1", "--policy", "fixed:1")
    return {
        "trace": trace,
        "sweep": _replay(folder / "sweep", trace, *policies, *sweep),
        "mtp1": _replay(folder / "mtp1", trace, *mtp1, *sweep),
        "at-4": _replay(folder / "at-4", trace, *policies, "--concurrency", "4"),
        "at-8": _replay(folder / "at-8", trace, *policies, "--concurrency", "8"),
        "open": _replay(folder / "open", trace, *policies),
    }


def _page(*folders: Path, **options: Any) -> Figure:
    return compare_page([load_replay(folder) for folder in folders], **options)


def _lines(axes: Axes) -> dict[str, Line2D]:
    """The drawn series by label; helper lines have none."""
    lines = {str(line.get_label()): line for line in axes.lines}
    return {label: line for label, line in lines.items() if not label.startswith("_")}


def _summary(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return loaded


def _rows(folder: Path, policy: str) -> list[dict[str, Any]]:
    return [row for row in _summary(folder)["policies"] if row["policy"] == policy]


@pytest.mark.example
@pytest.mark.parametrize("kind", ["sweep", "open", "at-4"])
def test_every_panel_has_a_line_per_policy_and_a_unit_on_each_axis(
    results: dict[str, Path], kind: str
) -> None:
    figure = _page(results[kind])
    assert len(figure.axes) == 6
    for axes in figure.axes:
        assert set(_lines(axes)) == set(POLICIES)
        assert axes.get_title(loc="left")
        for label in (axes.get_xlabel(), axes.get_ylabel()):
            assert any(
                unit in label for unit in ("(ms)", "(s)", "(%)", "(min)", "tok", "requests")
            ), label


@pytest.mark.example
def test_sweep_panels_hold_the_numbers_of_the_summary(results: dict[str, Path]) -> None:
    _, _, _, frontier, budget, throughput = _page(results["sweep"]).axes
    gpus = _summary(results["sweep"])["gpus"]
    for policy in POLICIES:
        rows = _rows(results["sweep"], policy)
        speed = [row["output_tok_s"] / gpus for row in rows]
        line = _lines(frontier)[policy]
        assert list(line.get_xdata()) == [row["tok_s_user_p50"] for row in rows]
        assert list(line.get_ydata()) == speed
        line = _lines(budget)[policy]
        assert list(line.get_xdata()) == list(LOADS)
        assert list(line.get_ydata()) == [row["verify_tokens_per_request_step"] for row in rows]
        assert list(_lines(throughput)[policy].get_ydata()) == speed


@pytest.mark.example
def test_mtp1_verifies_two_tokens_at_every_load(results: dict[str, Path]) -> None:
    figure = _page(results["sweep"], results["mtp1"])
    budget = _lines(figure.axes[4])
    assert list(budget["fixed:1 (mtp1)"].get_ydata()) == [2.0, 2.0, 2.0]
    assert list(budget["none (dspark-qwen3-4b)"].get_ydata()) == [1.0, 1.0, 1.0]


@pytest.mark.law
def test_cdf_crosses_half_at_the_median_of_the_summary(results: dict[str, Path]) -> None:
    for load in LOADS:
        figure = _page(results["sweep"], concurrency=load)
        for axes, key in zip(figure.axes, ("ttft_ms", "tpot_ms", "e2e_ms"), strict=False):
            scale = 1e3 if axes.get_xlabel().endswith("(s)") else 1.0
            for policy in POLICIES:
                line = _lines(axes)[policy]
                row = next(r for r in _rows(results["sweep"], policy) if r["concurrency"] == load)
                x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
                assert np.all(np.diff(x) >= 0)
                median = np.interp(50.0, y, x) * scale
                assert median == pytest.approx(row[key]["p50"], abs=1e-4)


@pytest.mark.law
def test_step_profiles_add_up_to_the_summary(results: dict[str, Path]) -> None:
    for policy, profile in read_batch_profiles(load_replay(results["open"]), None).items():
        row = _rows(results["open"], policy)[0]
        requests = np.arange(profile.steps.size) @ profile.steps
        assert profile.verified.sum() / requests == pytest.approx(
            row["whole_run"]["verify_tokens_per_request_step"], abs=1e-6
        )
        assert profile.committed.sum() / requests == pytest.approx(
            row["whole_run"]["accept_len_mean"], abs=1e-6
        )
        assert 0 < profile.seconds.sum() <= row["whole_run"]["duration_s"]


@pytest.mark.law
def test_load_over_time_averages_to_the_summary(results: dict[str, Path]) -> None:
    load = _page(results["open"]).axes[5]
    for policy in POLICIES:
        row = _rows(results["open"], policy)[0]["whole_run"]
        end_s = load.get_xlim()[1]  # the last answer's end; a step may be left behind it
        in_system_s = float(np.mean(_lines(load)[policy].get_ydata())) * end_s
        expected_s = row["requests_in_system_mean"] * row["duration_s"]
        assert in_system_s == pytest.approx(expected_s, rel=1e-4)


@pytest.mark.example
def test_folders_of_single_loads_continue_each_other(results: dict[str, Path]) -> None:
    figure = _page(results["at-8"], results["at-4"])
    assert set(_lines(figure.axes[4])) == set(POLICIES)
    assert list(_lines(figure.axes[4])["none"].get_xdata()) == [4, 8]


@pytest.mark.example
def test_policies_can_be_chosen(results: dict[str, Path]) -> None:
    figure = _page(results["sweep"], policies=["global"])
    assert [set(_lines(axes)) for axes in figure.axes] == [{"global"}] * 6


@pytest.mark.example
def test_folders_that_differ_in_nothing_are_named_by_folder(
    results: dict[str, Path], tmp_path: Path
) -> None:
    again = shutil.copytree(results["at-4"], tmp_path / "again")
    replays = [load_replay(results["at-4"]), load_replay(again)]
    labels = [one.label for one in make_series(replays, ["fixed"])]
    assert labels == ["fixed (at-4)", "fixed (again)"]


@pytest.mark.law
def test_no_two_looks_are_alike_in_grey() -> None:
    looks = [*POLICY_LOOKS.values(), *SPARE_LOOKS]
    assert len({look.marker for look in looks}) == len(looks)
    known = [*POLICY_LOOKS.values()]
    assert len({str(look.dash) for look in known}) == len(known)


@pytest.mark.law
@pytest.mark.parametrize("names", [("sweep",), ("open",), ("sweep", "mtp1"), ("long",)])
def test_no_text_is_cut_off_and_no_part_covers_another(
    results: dict[str, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    folders = [results[name] for name in names if name != "long"]
    if not folders:
        long = shutil.copytree(results["sweep"], tmp_path / ("a-rather-long-folder-name" * 2))
        edited = _summary(long) | {"trace": "conversation-" * 6, "cost_model": "gb300-" * 12}
        (long / "summary.json").write_text(json.dumps(edited))
        folders = [results["sweep"], long]
    figure = _page(*folders)
    with page_style():
        figure.draw_without_rendering()
    page = figure.bbox
    parts = [axes.get_tightbbox() for axes in figure.axes]
    parts += [figure.legends[0].get_window_extent()]
    parts += [text.get_window_extent() for text in figure.texts]
    boxes = [box for box in parts if box is not None]
    assert len(boxes) == len(parts)
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1, i
        assert page.y0 <= box.y0 < box.y1 <= page.y1, i
        for other in boxes[:i]:
            assert not box.shrunk(0.999, 0.999).overlaps(other), (i, box, other)


@pytest.mark.law
@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_the_same_results_make_the_same_bytes(results: dict[str, Path], form: str) -> None:
    first = page_bytes(_page(results["sweep"]), form)
    with matplotlib.rc_context({"font.size": 31, "axes.grid": False, "savefig.dpi": 30}):
        assert page_bytes(_page(results["sweep"]), form) == first


@pytest.mark.law
def test_panels_stand_on_a_grid_so_that_the_solvers_last_bits_do_not_show(
    results: dict[str, Path],
) -> None:
    for axes in _page(results["sweep"]).axes:
        for value in axes.get_position().bounds:
            assert value == pytest.approx(round(value, 4), abs=1e-12)


@pytest.mark.law
def test_another_process_writes_the_same_file_without_torch_or_sglang(
    results: dict[str, Path], tmp_path: Path
) -> None:
    command = (
        "import sys, simulator.run\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from analysis.compare import main\n"
        f"status = main([{str(results['sweep'])!r}, '-o', {str(tmp_path / 'b.svg')!r}])\n"
        "assert not {'torch', 'sglang'} & set(sys.modules)\n"
        "raise SystemExit(status)\n"
    )
    subprocess.run(
        [sys.executable, "-c", command], check=True, cwd=Path(compare.__file__).parents[1]
    )
    assert compare.main([str(results["sweep"]), "-o", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.example
def test_footer_says_where_the_numbers_come_from(results: dict[str, Path]) -> None:
    summary = _summary(results["sweep"])
    words = " ".join(text.get_text() for text in _page(results["sweep"]).texts)
    words = words.replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "trace short",
        summary["trace_sha256"][:12],
        f"{summary['cost_model']} ({summary['cost_model_origin']})",
        "acceptance dspark-qwen3-4b",
        "SLO standard (TTFT 2000 ms, TPOT 50 ms)",
        "seed 0",
        "sglang-dspark ",
    ):
        assert part in words
    assert "partial" not in words.lower()


@pytest.mark.example
def test_interrupted_results_say_so_twice(results: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(results["open"], tmp_path / "stopped")
    (folder / "summary.json").write_text(json.dumps(_summary(folder) | {"interrupted": True}))
    words = [text.get_text() for text in _page(folder).texts]
    assert words[0].startswith("PARTIAL")
    assert "interrupted" in words[-1]


def _spoil(folder: Path, how: str) -> None:
    summary = _summary(folder)
    match how:
        case "no summary":
            (folder / "summary.json").unlink()
        case "another schema":
            (folder / "summary.json").write_text(json.dumps(summary | {"schema_version": 1}))
        case "no runs":
            (folder / "summary.json").write_text(json.dumps(summary | {"policies": []}))
        case "no speed":
            del summary["policies"][0]["output_tok_s"]
            (folder / "summary.json").write_text(json.dumps(summary))
        case "unknown SLO":
            (folder / "summary.json").write_text(json.dumps(summary | {"slo": "quick"}))
        case "no config":
            (folder / "config.json").unlink()
        case "no requests":
            (folder / "requests.parquet").unlink()
        case "no batches":
            (folder / "batches.parquet").unlink()
        case "half a file":
            data = (folder / "requests.parquet").read_bytes()
            (folder / "requests.parquet").write_bytes(data[: len(data) // 2])
        case "another run's requests":
            shutil.copy(folder.parent / "other.parquet", folder / "requests.parquet")


@pytest.mark.example
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no summary", "summary.json: cannot read"),
        ("another schema", "schema_version 1 is not 2"),
        ("no runs", "'policies' is empty"),
        ("no speed", "output_tok_s"),
        ("unknown SLO", "quick"),
        ("no config", "config.json: cannot read"),
        ("no requests", "requests.parquet: there is no such file"),
        ("no batches", "batches.parquet: there is no such file"),
        ("half a file", "requests.parquet: not a Parquet file"),
        ("another run's requests", "requests.parquet: no rows of policy 'none'"),
    ],
)
def test_a_spoilt_folder_gets_one_sentence(
    results: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    says: str,
) -> None:
    folder = shutil.copytree(results["open"], tmp_path / "results")
    shutil.copy(results["mtp1"] / "requests.parquet", tmp_path / "other.parquet")
    _spoil(folder, how)
    before = sorted(tmp_path.rglob("*"))
    assert compare.main([str(folder), "-o", str(tmp_path / "page.png")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.example
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{sweep}", "-o", "{tmp}/page.gif"], "'.gif' is no picture format; use .png, .pdf, .svg"),
        (["{sweep}", "-o", "{tmp}/page"], "no suffix"),
        (["{sweep}", "-o", "{tmp}/nowhere/page.png"], "cannot write"),
        (["{sweep}", "-o", "{sweep}/summary.json/page.png"], "cannot write"),
        (["{tmp}/nowhere", "-o", "{tmp}/page.png"], "cannot read"),
        (["{sweep}", "{open}", "-o", "{tmp}/page.png"], "draw them apart"),
        (["{sweep}", "{sweep}", "-o", "{tmp}/page.png"], "give each folder once"),
        (["{sweep}", "-o", "{tmp}/page.png", "--policy", "globl"], "there are none, fixed, global"),
        (["{sweep}", "-o", "{tmp}/page.png", "--concurrency", "3"], "there are 1, 4, 16"),
        (["{open}", "-o", "{tmp}/page.png", "--concurrency", "4"], "the trace's arrivals"),
        (["{sweep}", "-o", "{tmp}/page.png", "--colour"], "--colour"),
    ],
)
def test_a_wrong_request_gets_one_sentence(
    results: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    filled = [part.format(tmp=tmp_path, **results) for part in arguments]
    before = sorted(results["sweep"].iterdir())
    assert compare.main(filled) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert sorted(results["sweep"].iterdir()) == before


@pytest.mark.example
def test_more_lines_than_looks_are_refused(results: dict[str, Path], tmp_path: Path) -> None:
    folders = [shutil.copytree(results["at-4"], tmp_path / f"run-{i}") for i in range(5)]
    with pytest.raises(ValueError, match="15 lines are more than the 12"):
        _page(*folders)


@pytest.mark.example
def test_requests_keep_the_latencies_of_the_simulator(results: dict[str, Path]) -> None:
    rows = read_requests(load_replay(results["at-4"]), 4)["fixed"]
    times = request_times(rows)
    row = _rows(results["at-4"], "fixed")[0]
    for key in ("ttft", "tpot", "e2e"):
        found = np.nanpercentile(times[key], 90) * 1e3
        assert found == pytest.approx(row[f"{key}_ms"]["p90"], abs=1e-4)
