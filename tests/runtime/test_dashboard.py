"""The Grafana dashboard and the alert rules: every series and label they ask for is exported.

Expressions are parsed by promql-parser where it is installed, and by their brackets and names
everywhere.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_dspark.runtime.exporter import COUNTERS, GAUGES, HISTOGRAMS, INFO, PREFIX

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = DOCS / "grafana" / "dspark.json"
ALERTS = DOCS / "alerts.yml"
COMMON = {"model_name", "instance", "tp_rank"}
"""Labels of every series: SGLang's own and the scraper's."""
LATE = ("degraded_steps_total", "correction_seconds_factor", "correction_odds_factor")
"""Series of servers to which something happens, or which are corrected online."""
KEYWORDS = {"by", "on", "group_left", "unless", "and", "or", "offset", "vector", "sum", "max"}
FUNCTIONS = {"count", "rate", "increase", "abs", "histogram_quantile", "label_values"}


def exported() -> dict[str, set[str]]:
    """Series name -> labels beside the common ones."""
    series = {f"{PREFIX}{name}_total": {label} - {""} for name, (label, _) in COUNTERS.items()}
    series |= {PREFIX + name: {label} - {""} for name, (label, _) in GAUGES.items()}
    for name in HISTOGRAMS:
        series |= {f"{PREFIX}{name}_{end}": set() for end in ("sum", "count")}
        series[f"{PREFIX}{name}_bucket"] = {"le"}
    return series | {PREFIX + INFO: {"gamma", "policy", "cost_model"}}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return board


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    assert [group["name"] for group in groups] == ["sglang-dspark"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, legend)"""
    board = dashboard()
    for note in board["annotations"]["list"]:
        yield note["name"], note["expr"], note["titleFormat"] + note["textFormat"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for rule in rules():
        yield rule["alert"], rule["expr"], ""


def plain(expression: str) -> str:
    """Without Grafana's variables, as Prometheus is asked."""
    expression = expression.replace("$__rate_interval", "5m")
    return expression.replace("$model", ".*").replace("$instance", ".*")


@pytest.mark.law
def test_every_series_and_label_asked_for_is_exported() -> None:
    known = exported()
    asked = 0
    for where, expression, legend in expressions():
        bare = re.sub(r'"[^"]*"', '""', plain(expression))
        for opening, closing in ("()", "{}", "[]"):
            assert bare.count(opening) == bare.count(closing), where
        selectors = re.findall(r"(sglang:\w+)\{([^}]*)\}", bare)
        assert len(selectors) == bare.count("sglang:") > 0, where
        extra: set[str] = set()
        for name, matchers in selectors:
            assert name in known, f"{where}: {name}"
            labels = set(re.findall(r"(\w+)\s*[=!]", matchers))
            assert labels <= COMMON | known[name], f"{where}: {labels}"
            assert "tp_rank" in labels, f"{where}: counts every rank of {name}"
            extra |= known[name]
            asked += 1
        rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|sglang:\w+", " ", bare)
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rest))))
        assert grouped <= COMMON | extra, f"{where}: {grouped}"
        words = set(re.findall(r"[a-z_]+", re.sub(r"\b\d+m\b", "", rest)))
        assert words - grouped <= KEYWORDS | FUNCTIONS, f"{where}: {words}"
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= COMMON | extra, f"{where}: {legend}"
    assert asked > 60


@pytest.mark.law
def test_every_metric_has_a_panel() -> None:
    text = " ".join(expression for _, expression, _ in expressions())
    silent = {name for name in exported() if re.search(rf"{name}\b", text) is None}
    assert silent <= {f"{PREFIX}verified_tokens_per_request_{end}" for end in ("sum", "count")}


@pytest.mark.law
def test_every_expression_parses() -> None:
    if importlib.util.find_spec("promql_parser") is None:
        pytest.skip("promql-parser is not installed")
    import promql_parser

    for where, expression, _ in expressions():
        try:
            promql_parser.parse(plain(expression))
        except ValueError as error:
            raise AssertionError(f"{where}: {error}: {expression}") from None
    with pytest.raises(ValueError, match=r"\w"):
        promql_parser.parse("sum by (le (rate(x[5m]))")


@pytest.mark.law
def test_the_names_are_those_that_a_registry_holds() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    from sglang_dspark.runtime.metrics import WorkerMetrics
    from tests.logs.step_records import GAMMA, random_record

    registry = prometheus_client.CollectorRegistry()
    metrics = WorkerMetrics(
        gamma=GAMMA,
        policy="global",
        cost_model="m",
        labels={"model_name": "tiny", "tp_rank": 0},
        interval_s=0,
        registry=registry,
    )
    for seed in range(9):
        metrics.observe(random_record(seed, rows=1000))
    metrics.flush()
    held: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            held.setdefault(sample.name, set()).update(set(sample.labels) - COMMON)
    held = {name: labels for name, labels in held.items() if not name.endswith("_created")}
    # Labelled series without known values come with the first step that has one.
    late = {PREFIX + name for name in LATE}
    assert {**held, **{n: exported()[n] for n in late}} == exported()


@pytest.mark.example
def test_the_dashboard_imports_into_any_grafana() -> None:
    board = dashboard()
    assert board["id"] is None
    assert {v["name"] for v in board["templating"]["list"]} == {"datasource", "model", "instance"}
    source = {"type": "prometheus", "uid": "${datasource}"}
    ids: set[int] = set()
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        ids.add(panel["id"])
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells
    assert len(ids) == len(board["panels"])
    for panel in panels():
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]


@pytest.mark.example
def test_the_alerts_cover_prices_confidences_degradation_and_the_log() -> None:
    found = {rule["alert"]: rule for rule in rules()}
    assert list(found) == [
        "DSparkCostModelStale",
        "DSparkCalibrationDrifted",
        "DSparkDegradedSteps",
        "DSparkStepLogStopped",
        "DSparkStepLogDropping",
    ]
    for rule in found.values():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        grouped = set(re.findall(r"\w+", re.findall(r"by \(([^)]*)\)", rule["expr"])[0]))
        assert used <= grouped, rule["alert"]
    stale, drifted = found["DSparkCostModelStale"], found["DSparkCalibrationDrifted"]
    assert stale["expr"].endswith("> 0.2")
    assert stale["for"] == drifted["for"] == "10m"
    text = DASHBOARD.read_text(encoding="utf-8")
    assert "DSparkCostModelStale" in text
    assert "DSparkCalibrationDrifted" in text
