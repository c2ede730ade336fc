"""The metrics: every number against a count by hand, in memory and through mapped files."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import StepLog
from tests.logs.step_records import GAMMA, header_with, random_record
from tests.waiting import wait_until

prometheus_client = pytest.importorskip("prometheus_client")

from sglang_dspark.runtime.metrics import BATCH_NAMES, LiveSummary, WorkerMetrics  # noqa: E402

LABELS = {"model_name": "tiny", "engine_type": "unified", "tp_rank": 0, "pp_rank": 0}


def metrics_of(**fields: Any) -> tuple[WorkerMetrics, Any]:
    registry = prometheus_client.CollectorRegistry()
    values: dict[str, Any] = {"cost_model": "tiny-gpu", "interval_s": 0, "labels": LABELS, **fields}
    metrics = WorkerMetrics(gamma=GAMMA, policy="global", registry=registry, **values)

    def read(name: str, **labels: str) -> float | None:
        wanted = {**{k: str(v) for k, v in LABELS.items()}, **labels}
        value: float | None = registry.get_sample_value("sglang:dspark_" + name, wanted)
        return value

    return metrics, read


def forecast(record: StepRecord, step_s: float, tokens: float) -> StepRecord:
    plan = dataclasses.replace(record.plan, predicted_step_s=step_s, expected_tokens=tokens)
    return dataclasses.replace(record, plan=plan)


def records_of(count: int) -> list[StepRecord]:
    """Batches of every bucket; some degraded, some without a forecast."""
    records = []
    for i in range(count):
        record = random_record(i, step=i, rows=[1, 2, 3, 7, 16, 20, 50, 100][i % 8])
        step_s = math.nan if i % 5 == 0 else 0.01 * (i + 1)
        record = forecast(record, step_s, float(i + 1))
        records.append(
            dataclasses.replace(record, degraded="NaN confidences") if i % 7 == 0 else record
        )
    return records


@pytest.mark.law
def test_counters_equal_a_count_by_hand() -> None:
    metrics, read = metrics_of()
    records = records_of(40)
    for i, record in enumerate(records):
        metrics.observe(record)
        if i % 9 == 0:
            metrics.flush()  # what is told in pieces adds up
    metrics.flush()
    lengths = np.concatenate([r.plan.lengths for r in records])
    accepted = np.concatenate([r.accepted for r in records])
    logits = np.concatenate([r.state.logits for r in records])
    drafted = GAMMA * int((logits[:, 0] > -math.inf).sum())
    assert read("drafted_tokens_total") == drafted
    assert read("verified_tokens_total") == lengths.sum()
    assert read("trimmed_tokens_total") == max(drafted - lengths.sum(), 0)
    assert read("accepted_tokens_total") == accepted.sum()
    assert read("committed_tokens_total") == accepted.sum() + accepted.size
    assert read("planned_tokens_total") == lengths.sum() + lengths.size
    assert read("computed_tokens_total") == sum(r.computed_tokens for r in records)
    for shape in ("uniform", "ragged"):
        assert read("steps_total", shape=shape) == sum(r.shape == shape for r in records)
    for k in range(1, GAMMA + 1):
        at_k = {"position": str(k)}
        assert read("proposed_by_position_total", **at_k) == (lengths >= k).sum()
        reached = ((lengths >= k) & (accepted >= k - 1)).sum()
        assert read("reached_by_position_total", **at_k) == reached
        assert read("accepted_by_position_total", **at_k) == (accepted >= k).sum()
        assert read("verified_tokens_per_request_bucket", le=f"{k}.0") == (lengths <= k).sum()
    assert read("verified_tokens_per_request_sum") == lengths.sum()
    assert read("verified_tokens_per_request_count") == lengths.size
    assert read("batch_size_count") == 40
    assert read("batch_size_sum") == lengths.size
    assert read("batch_size_bucket", le="8.0") == sum(r.requests <= 8 for r in records)
    degraded = [r for r in records if r.degraded]
    assert read("degraded_steps_total", reason="NaN confidences") == len(degraded)
    for reason in {r.plan.stop_reason for r in records}:
        count = sum(r.plan.stop_reason == reason for r in records)
        assert read("stop_reasons_total", reason=reason) == count
    for phase in ("draft", "plan", "verify", "commit"):
        seconds = sum(getattr(r, f"{phase}_s") for r in records)
        assert read("phase_seconds_total", phase=phase) == pytest.approx(seconds)


@pytest.mark.law
def test_forecasts_are_judged_on_the_steps_that_carry_one() -> None:
    metrics, read = metrics_of()
    records = records_of(40)
    for record in records:
        metrics.observe(record)
    metrics.flush()
    priced = [r for r in records if not r.degraded and math.isfinite(r.plan.predicted_step_s)]
    expecting = [r for r in records if not r.degraded]
    assert 0 < len(priced) < len(expecting) < 40
    seconds, tokens = "forecast_step_seconds_total", "forecast_tokens_total"
    predicted_s = sum(r.plan.predicted_step_s for r in priced)
    assert read(seconds, kind="predicted") == pytest.approx(predicted_s)
    assert read(seconds, kind="actual") == pytest.approx(sum(r.step_s for r in priced))
    assert read(tokens, kind="expected") == sum(r.plan.expected_tokens for r in expecting)
    assert read(tokens, kind="actual") == sum(r.committed_tokens for r in expecting)


@pytest.mark.example
def test_a_perfect_forecast_reads_as_perfect_and_no_prices_as_no_forecast() -> None:
    record = random_record(3, rows=4)
    record = forecast(record, record.step_s, float(record.committed_tokens))
    metrics, read = metrics_of()
    metrics.observe(record)
    metrics.flush()
    for name in ("forecast_step_seconds_total", "forecast_tokens_total"):
        kinds = ("actual", "predicted" if "seconds" in name else "expected")
        assert read(name, kind=kinds[0]) == pytest.approx(read(name, kind=kinds[1]))
    assert read("last_predicted_step_seconds") == pytest.approx(read("last_step_seconds"))
    assert read("budget_tokens") == record.plan.lengths.sum()
    metrics, read = metrics_of(cost_model=None)
    metrics.observe(record)
    metrics.flush()
    assert read("forecast_step_seconds_total", kind="actual") == 0
    assert read("forecast_tokens_total", kind="expected") == record.committed_tokens
    assert read("info", gamma="4", policy="global", cost_model="none") == 1


@pytest.mark.example
def test_the_known_series_read_zero_before_the_first_step() -> None:
    _, read = metrics_of()
    assert read("steps_total", shape="ragged") == 0
    assert read("accepted_by_position_total", position="4") == 0
    assert read("accepted_by_position_total", position="5") is None
    assert read("stop_reasons_total", reason="no-gain") == 0
    assert read("info", gamma="4", policy="global", cost_model="tiny-gpu") == 1


@pytest.mark.law
def test_the_summary_is_finite_json_and_equals_the_counters() -> None:
    metrics, read = metrics_of()
    empty = metrics.summary()
    assert json.loads(json.dumps(empty, allow_nan=False)) == empty
    assert empty["verified_per_request"] == dict.fromkeys(BATCH_NAMES)
    records = records_of(40)
    counted_by_numpy = dataclasses.replace(records[0], computed_tokens=np.int64(7))
    for record in [counted_by_numpy, *records[1:]]:
        metrics.observe(record)
    metrics.flush()
    summary = metrics.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["steps"] == 40
    for name in ("verified_tokens", "computed_tokens", "committed_tokens", "trimmed_tokens"):
        assert summary[name] == read(f"{name}_total")
    sizes = {"1": [1], "2": [2], "3-4": [3], "5-8": [7], "9-16": [16], "17-32": [20]}
    sizes |= {"33-64": [50], "65+": [100]}
    for name, rows in sizes.items():
        those = [r for r in records if r.requests in rows]
        mean = np.concatenate([r.plan.lengths for r in those]).mean()
        assert summary["verified_per_request"][name] == pytest.approx(mean)
        assert summary["steps_by_batch_size"][name] == len(those) == 5
    accepted = np.concatenate([r.accepted for r in records])
    lengths = np.concatenate([r.plan.lengths for r in records])
    assert summary["accepted_length"] == pytest.approx(1 + accepted.mean())
    assert summary["acceptance"][1] == pytest.approx((accepted >= 2).sum() / (lengths >= 2).sum())
    assert summary["requests_by_length"] == np.bincount(lengths, minlength=GAMMA + 1).tolist()
    assert summary["degraded_steps"] == {"NaN confidences": 6}


@pytest.mark.example
def test_a_live_summary_is_read_as_it_is_now() -> None:
    metrics, _ = metrics_of()
    live = LiveSummary(metrics)
    metrics.observe(random_record(0, rows=3))
    assert dict(live.items())["steps"] == 1
    metrics.observe(random_record(1, rows=3))
    assert {key: value for key, value in live.items()}["steps"] == 2  # noqa: C416
    copied = pickle.loads(pickle.dumps(live))
    assert type(copied) is dict
    assert copied == metrics.summary()


@pytest.mark.example
def test_sglang_copies_a_live_summary_into_its_answer() -> None:
    sglang = importlib.util.find_spec("sglang")
    if sglang is None or not sglang.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    # By its path: importing the package would take half a minute.
    path = Path(sglang.submodule_search_locations[0]) / "srt" / "utils" / "msgspec_utils.py"
    spec = importlib.util.spec_from_file_location("msgspec_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    metrics, _ = metrics_of()
    server_arguments = {"dspark": LiveSummary(metrics)}
    metrics.observe(random_record(0, rows=3))
    answer = module.msgspec_to_builtins(server_arguments)["dspark"]
    assert type(answer) is dict
    assert answer == metrics.summary()
    assert answer["steps"] == 1


@pytest.mark.law
def test_dropped_records_and_a_stopped_log_show(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.CRITICAL):
        log = StepLog(tmp_path / "file", header=header_with(), poll_s=0.01)
        log.close()
    metrics, read = metrics_of(step_log=log)
    log.observe(random_record(0))
    metrics.flush()
    assert read("step_log_dropped_total") == 1
    assert read("step_log_records_total") == 0
    assert read("step_log_stopped") == 1
    assert "cannot make the folder" in metrics.summary()["step_log"]["stopped"]
    log = StepLog(tmp_path / "log", header=header_with(), poll_s=0.01)
    metrics, read = metrics_of(step_log=log)
    log.observe(random_record(0))
    log.close()
    metrics.flush()
    assert read("step_log_records_total") == 1
    assert read("step_log_stopped") == 0


@pytest.mark.example
def test_its_own_thread_flushes_and_close_flushes_the_rest() -> None:
    metrics, read = metrics_of(interval_s=0.02)
    metrics.observe(random_record(0, rows=3))
    wait_until(lambda: read("batch_size_count") == 1)
    metrics.observe(random_record(1, rows=3))
    metrics.close()
    assert read("batch_size_count") == 2


@pytest.mark.example
def test_a_flush_that_fails_leaves_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _ = metrics_of()

    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics, "flush", fail)
    metrics._interval_s = 0.001
    metrics._run()
    assert "goes on without them: [Errno 28]" in caplog.text
    metrics.observe(random_record(0, rows=3))
    assert metrics.summary()["steps"] == 1


SERVER = """
from tests.logs.step_records import random_record
from sglang_dspark.runtime.metrics import WorkerMetrics
metrics = WorkerMetrics(gamma=4, policy="global", cost_model="m", labels={"tp_rank": 0})
for seed in range(30):
    metrics.observe(random_record(seed, rows=5))
metrics.close()
"""


@pytest.mark.example
def test_another_process_reads_them_through_mapped_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", SERVER], cwd=root, check=True)
    from prometheus_client import multiprocess

    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    records = [random_record(seed, rows=5) for seed in range(30)]
    name = "sglang:dspark_verified_tokens_per_request"
    verified = int(sum(record.plan.lengths.sum() for record in records))
    read = registry.get_sample_value
    assert read("sglang:dspark_verified_tokens_total", {"tp_rank": "0"}) == verified
    assert read(f"{name}_sum", {"tp_rank": "0"}) == verified
    assert read(f"{name}_bucket", {"tp_rank": "0", "le": "+Inf"}) == 150
    text = prometheus_client.generate_latest(registry).decode()
    assert 'sglang:dspark_info{cost_model="m",gamma="4",policy="global",tp_rank="0"} 1.0' in text
