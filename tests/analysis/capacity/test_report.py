"""The capacity report: its numbers, its bytes, and what it says where nothing holds."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.capacity import command as capacity
from analysis.capacity.figures import draw_all
from analysis.capacity.html_file import first_page
from analysis.capacity.report import LOW_LOADS
from analysis.capacity.words import sureness_in_words
from analysis.style import page_style
from sglang_dspark.core.costs.schema import ORIGINS
from simulator import run
from simulator.fleet.mistakes import MISTAKES
from tests.waiting import HUNG_S, wait_until
from traces import Request, load_trace, write_trace

FILES = ["report.html", "report.json", "report.pdf"]
POLICIES = ("none", "fixed", "global")
FLAGS = [*(part for name in POLICIES for part in ("--policy", name)), "--rate", "16", "1"]
ROOT = Path(capacity.__file__).parents[2]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 requests in 65 seconds."""
    random = np.random.default_rng(5)
    requests = [
        Request(
            request_id=f"r{i}",
            arrival_s=0.25 * i,
            prompt_tokens=int(random.integers(20, 900)),
            output_tokens=int(random.integers(2, 120)),
            domain=("chat", "code", "math")[i % 3],
        )
        for i in range(260)
    ]
    path = tmp_path_factory.mktemp("traces") / "short.jsonl"
    write_trace(path, requests, source="test", command="none", seed=5)
    return path


@pytest.fixture(scope="module")
def folder(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three policies at two rates, with a price."""
    out = tmp_path_factory.mktemp("report") / "first"
    flags = [*FLAGS, "--slo", "500:20", "--cost-per-gpu-hour", "3.5", "--jobs", "1"]
    assert capacity.main([str(trace), *flags, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


class _Page(HTMLParser):
    """What a reader of the HTML has: table rows, text, and what it points at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self.alternatives: list[str] = []
        self.resources: list[str] = []
        self.anchors: list[str] = []
        self.places: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
        if tag == "img":
            self.alternatives.append(given.get("alt") or "")
        if tag == "a":
            self.anchors.append(given["href"] or "")
        elif "src" in given or "href" in given:
            self.resources.append(given.get("src") or given.get("href") or "")
        if "id" in given:
            self.places.append(given["id"] or "")
        assert tag not in ("script", "iframe", "object")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def _close(shown: str, value: float | None) -> bool:
    """Whether a shown number is ``value`` to three significant digits."""
    if value is None:
        return shown == "–"
    return float(shown.replace(",", "")) == pytest.approx(value, rel=6e-3, abs=1e-9)


@pytest.mark.law
def test_every_number_of_the_first_page_is_in_the_record(report: dict[str, Any]) -> None:
    page = _Page(first_page(report))
    text = " ".join(page.text.split())
    for sentence in [*report["answer"]["sentences"], *report["sureness"]]:
        assert " ".join(sentence.split()) in text
    assert report["answer"]["headline"] in text
    head, *rows = page.rows
    assert head[2:] == report["policies"]
    fleets = report["fleets"]
    for cells, fleet in zip(rows[: len(fleets)], fleets, strict=True):
        assert _close(cells[0].removeprefix("×"), fleet["rate"])
        assert _close(cells[1], fleet["offered_req_s"])
        for cell, label in zip(cells[2:], report["policies"], strict=True):
            _same_size(cell, fleet["policies"][label])
    _, *rows = page.rows[1 + len(fleets) :]
    assert [row[0] for row in rows] == report["policies"]
    for label, held, size, cost, energy, attained, less in rows:
        found = fleets[-1]["policies"][label]
        assert _close(held, report["traffic"][label]["replica_req_s"])
        _same_size(size, found)
        assert _close(cost, found["cost_per_mtok"])
        assert _close(energy, found["kwh_per_mtok"])
        shares = [float(part) / 100 for part in re.findall(r"[\d.]+", attained)]
        wanted = [found["attainment"], *found["interval"]]
        assert shares == pytest.approx(wanted, abs=6e-4)
        one_less = found["one_less"]
        assert less == "–" if one_less is None else float(less) == pytest.approx(
            100 * one_less, abs=0.06
        )  # fmt: skip


def _same_size(cell: str, found: dict[str, Any]) -> None:
    shown = re.fullmatch(r"(\d+) \((\d+)\)", cell)
    assert shown is not None, cell
    assert int(shown[1]) == found["gpus"]
    assert int(shown[2]) == pytest.approx(100 * found["load"], abs=0.51)


@pytest.mark.law
@pytest.mark.parametrize("origin", ORIGINS)
def test_every_origin_of_a_cost_model_has_its_sentence(origin: str, report: dict[str, Any]) -> None:
    """Law: and no origin but ``composed`` speaks of a form that is off composed steps."""
    error = {"median_rel": 0.01, "max_rel": 0.02, "note": "somewhere"}
    model = {**report["cost_model"], "origin": origin, "fit_error": error}
    said = sureness_in_words({**report, "cost_model": model})[0]
    assert said.startswith(f"Cost model {model['name']} ({origin}) ")
    assert ("form is off" in said) == (origin == "composed")


@pytest.mark.law
def test_the_record_adds_up(report: dict[str, Any]) -> None:
    """Money, energy and load from their formulas, by hand."""
    watts = report["cost_model"]["watts"]
    tokens = report["statistics"]["output_tokens"]["mean"]
    for fleet in report["fleets"]:
        assert fleet["offered_req_s"] == pytest.approx(fleet["rate"] * 259 / (0.25 * 259))
        for label, found in fleet["policies"].items():
            tok_s = fleet["offered_req_s"] * tokens
            hours = found["gpus"] / 3600 / tok_s * 1e6
            assert found["gpu_hours_per_mtok"] == pytest.approx(hours, rel=1e-4)
            assert found["cost_per_mtok"] == pytest.approx(3.5 * hours, rel=1e-4)
            power = watts["idle"] + found["utilisation"] * (watts["busy"] - watts["idle"])
            assert found["kwh_per_mtok"] == pytest.approx(hours * power / 1e3, rel=1e-4)
            saturates = report["traffic"][label]["saturates_at_req_s"] * found["replicas"]
            assert found["load"] == pytest.approx(fleet["offered_req_s"] / saturates)
            assert found["attainment"] >= report["attainment"]
            assert found["one_less"] is None or found["one_less"] < report["attainment"]
    held = {label: found["replica_req_s"] for label, found in report["traffic"].items()}
    assert held[report["chosen"]] == max(held.values())
    assert any(found["one_less"] for found in report["fleets"][-1]["policies"].values())


@pytest.mark.law
def test_crossovers_and_regret_follow_from_the_throughputs(report: dict[str, Any]) -> None:
    loads = report["closed_loop"]["concurrency"]
    speed = {
        label: [row["output_tok_s"] for row in rows]
        for label, rows in report["closed_loop"]["policies"].items()
    }
    pairs = {(c["policy"], c["versus"]) for c in report["crossovers"]}
    assert pairs == {(a, b) for a in POLICIES for b in ("none", "fixed") if a != b}
    for found in report["crossovers"]:
        ours, theirs = speed[found["policy"]], speed[found["versus"]]
        for load, mine, other in zip(loads, ours, theirs, strict=True):
            above = any(low <= load <= high for low, high in found["above"])
            below = any(low <= load <= high for low, high in found["below"])
            assert above == (mine > 1.01 * other)
            assert below == (mine < 0.99 * other)
    for label, regret in report["low_load_regret"].items():
        losses = [
            1 - speed[label][i] / max(each[i] for each in speed.values())
            for i, load in enumerate(loads)
            if load in LOW_LOADS
        ]
        assert regret == pytest.approx(max(losses))
    assert set(report["mistakes"]["policies"]) == {"global"}  # the others believe nothing
    for changes in report["mistakes"]["policies"]["global"]:
        assert len(changes) == len(MISTAKES)


@pytest.mark.law
def test_the_html_is_one_file_that_points_at_itself_alone(
    folder: Path, report: dict[str, Any]
) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    page = _Page(text)
    assert all(resource.startswith("data:") for resource in page.resources)
    assert page.anchors
    assert {anchor.removeprefix("#") for anchor in page.anchors} <= set(page.places)
    assert len(page.alternatives) == 6
    assert all(len(alternative) > 40 for alternative in page.alternatives)
    for resource in page.resources[1:]:
        picture = base64.b64decode(resource.partition(",")[2]).decode()
        assert picture.startswith("<?xml")
        assert "<text" not in picture  # outlines: no font of the reader's is needed
    for limit in report["limits"]:
        assert limit.split(";")[0][:40] in page.text


@pytest.mark.law
def test_another_process_writes_the_same_bytes(folder: Path, trace: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--slo", "500:20", "--cost-per-gpu-hour", "3.5", "--jobs", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "analysis.capacity", str(trace), *flags, "-o", str(tmp_path / "b")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_S,
    )
    assert ended.returncode == 0, ended.stderr
    assert "4 requests/s: any policy, 1 GPU.\n" in ended.stdout
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.example
def test_another_s_acceptance_is_said_on_the_first_page(report: dict[str, Any]) -> None:
    (sentence,) = report["acceptance_mismatch"]
    assert "names no acceptance profile of its own; accepted is what 'dspark-qwen3-4b'" in sentence
    assert f"Whose acceptance: {sentence}." in _Page(first_page(report)).text
    assert f"Warning: {sentence}." in report["limits"]


@pytest.mark.law
def test_no_text_is_cut_off_and_no_part_covers_another(report: dict[str, Any], trace: Path) -> None:
    drawings = draw_all(report, load_trace(trace))
    assert len({drawing.key for drawing in drawings}) == len(drawings)
    for drawing in drawings:
        figure = drawing.figure
        with page_style():
            figure.draw_without_rendering()
        page = figure.bbox
        parts = [axes.get_tightbbox() for axes in figure.axes]
        parts += [legend.get_window_extent() for legend in figure.legends]
        parts += [text.get_window_extent() for text in figure.texts]
        boxes = [box for box in parts if box is not None]
        for i, box in enumerate(boxes):
            assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1, (drawing.key, i)
            assert page.y0 - 1 <= box.y0 < box.y1 <= page.y1 + 1, (drawing.key, i)
            for other in boxes[:i]:
                assert not box.shrunk(0.99, 0.99).overlaps(other), (drawing.key, i)


@pytest.mark.law
def test_every_figure_says_where_its_numbers_come_from(report: dict[str, Any], trace: Path) -> None:
    for drawing in draw_all(report, load_trace(trace)):
        words = " ".join(text.get_text() for text in drawing.figure.texts)
        words = words.replace("\N{NO-BREAK SPACE}", " ")
        assert report["trace"]["sha256"][:12] in words
        assert f"sglang-dspark {report['version']}" in words
        if drawing.key != "trace":  # which has neither prices nor objectives
            for part in ("(analytic)", "acceptance dspark-qwen3-4b", "TTFT 500 ms", "seed 0"):
                assert part in words, drawing.key


@pytest.mark.example
def test_an_objective_that_nothing_holds_is_said_so(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--policy", "none", "--rate", "1", "--slo", "500:0.01", "--jobs", "1"]
    assert capacity.main([str(trace), *flags, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "No policy holds this objective" in printed
    assert "none up to 64" in printed
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["traffic"]["none"]["rate"] is None
    assert found["fleets"][0]["policies"]["none"]["gpus"] is None
    assert found["cost_per_gpu_hour"] is None
    assert "GPU-hours per M tokens" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.example
def test_a_result_folder_gives_its_settings(trace: Path, tmp_path: Path) -> None:
    policy = tmp_path / "tuned.json"
    policy.write_text('{"schema_version": 1, "policy": "threshold", "parameters": {}}')
    results = tmp_path / "results"
    settings = ["--policy", "fixed:3", "--slo", "relaxed", "--seed", "3", "--rate", "2"]
    settings += ["--router", "least-loaded"]
    assert run.main([str(trace), *settings, "--replicas", "2", "--out", str(results)]) == 0
    flags = ["--policy-file", str(policy), "--rate", "1", "--jobs", "1"]
    assert capacity.main([str(results), *flags, "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["policies"] == ["fixed:3", "tuned"]
    assert found["router"] == "least-loaded"
    assert (found["slo"]["name"], found["seed"]) == ("relaxed", 3)
    assert found["trace"]["name"] == "short"
    assert found["trace"]["offered_req_s"] == pytest.approx(4.0)  # at the trace's own rate
    assert found["crossovers"] == []  # neither none nor fixed is among them


@pytest.mark.example
def test_traffic_in_requests_a_second_users_and_a_fleet_that_stands(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--policy", "none", "--policy", "global", "--slo", "500:20", "--jobs", "1"]
    flags += ["--req-s", "4", "10", "--grow", "users", "--gpus", "2"]
    flags += ["--cost-per-gpu-hour", "2", "--currency", "EUR"]
    assert capacity.main([str(trace), *flags, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [fleet["offered_req_s"] for fleet in report["fleets"]] == pytest.approx([4.0, 10.0])
    assert "That is the trace 2.5 times the users." in printed
    size = report["fleets"][0]["policies"]["global"]
    assert size["cost_per_month"] == pytest.approx(730 * 2 * size["gpus"])
    assert f"costs {2 * size['gpus']} EUR an hour" in printed
    left = report["headroom"]["global"]
    assert left["replicas"] == 2
    assert left["headroom"] > 0
    assert "Your 2 GPUs have room for" in printed
    assert "30 % more traffic is still held" in printed


@pytest.mark.example
def test_ctrl_c_leaves_no_half_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "analysis.capacity", "traces/chat.jsonl", "-o", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = out / "journal.jsonl"
    wait_until(lambda: journal.exists() and journal.stat().st_size, process)
    os.kill(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert printed == ""
    assert [path.name for path in out.iterdir() if path.name != "journal.jsonl"] == []
