"""Who is told of a step: one writer of the log, a limit that is shared, corrections that learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.corrected_planner import CorrectedPlanner
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import read
from tests.logs.step_records import GAMMA, MAX_REQUESTS, random_record

prometheus_client = pytest.importorskip("prometheus_client")
pytest.importorskip("sglang")

from sglang_dspark.runtime.observers import Observers  # noqa: E402
from sglang_dspark.runtime.settings import Deployment, Settings, check  # noqa: E402

LABELS = {"model_name": "tiny", "engine_type": "unified", "tp_rank": 0, "pp_rank": 0}


def observers_of(settings: Settings, **given: Any) -> tuple[Observers, Deployment]:
    deployed = check(settings, gamma=GAMMA, has_confidence_head=True, max_requests=MAX_REQUESTS)
    values: dict[str, Any] = {"labels": LABELS, **given}
    # A process has one set of metrics; this one has several.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
        made = Observers(settings, deployed, gamma=GAMMA, max_requests=MAX_REQUESTS, **values)
    return made, deployed


@pytest.mark.example
def test_the_first_rank_alone_writes_the_log(tmp_path: Path) -> None:
    parts = []
    for rank in (0, 1):
        folder = tmp_path / str(rank)
        settings = Settings(policy="fixed:2", step_log=str(folder))
        observers, _ = observers_of(settings, labels=LABELS | {"tp_rank": rank})
        observers.observe(random_record(1, step=1, rows=3))
        if observers._log is not None:
            observers._log.close()
        parts.append(len(list(folder.glob("*.parquet"))))
    assert parts == [1, 0]
    assert [record.step for record in read(tmp_path / "0")] == [1]


@pytest.mark.law
@pytest.mark.parametrize(("sharing", "limit_mb"), [(1, 8), (2, 4), (100, 1)])
def test_servers_that_share_a_folder_share_its_limit(
    tmp_path: Path, sharing: int, limit_mb: int
) -> None:
    settings = Settings(policy="fixed:2", step_log=str(tmp_path), step_log_mb=8)
    observers, _ = observers_of(settings, sharing=sharing)
    assert observers._log is not None
    observers._log.close()
    assert observers._log._limit_bytes == limit_mb * 2**20


@pytest.mark.example
def test_a_corrected_policy_has_learned_before_anybody_else_is_told(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    correction = {"cost": False, "calibration": True}
    policy.write_text(
        json.dumps({"schema_version": 1, "policy": "fixed", "correction": correction})
    )
    observers, deployed = observers_of(Settings(policy=str(policy)))
    planner = deployed.planner
    assert isinstance(planner, CorrectedPlanner)
    seen: list[tuple[int, bool]] = []

    def listener(record: StepRecord) -> None:
        seen.append((record.step, bool(np.any(planner.evidence.bias))))

    observers.listeners.append(listener)
    observers.observe(random_record(3, step=7, rows=16))
    assert seen == [(7, True)]
