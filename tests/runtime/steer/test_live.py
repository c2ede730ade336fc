"""Every step of a server under policy ``sglang``, decided again by SGLang's own functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_dspark.core import load_cost_model
from sglang_dspark.core.costs.sglang_files import SpsTable
from sglang_dspark.core.costs.sglang_prices import falling
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.core.state import Floats
from sglang_dspark.core.survival import sigmoid
from sglang_dspark.logs.step_log import read
from simulator.fit.from_server import lines, look
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_checks import settle
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import GAMMA, Greedy, Pair, greedy_sampling, write_costs


def confidences(logits: Floats) -> Tensor:
    """float32 confidences that the recorded logits stand for; 1 where there is no history."""
    found = [1.0 if np.isnan(z) else sigmoid(z) for z in logits.ravel()]
    return torch.tensor(found, dtype=torch.float64).float().reshape(logits.shape)


@pytest.mark.law
@pytest.mark.filterwarnings("ignore:.* tokens take ")  # the noisy table falls
@pytest.mark.parametrize(
    ("policy", "overlap", "noisy"),
    [
        ("sglang", True, False),
        ("sglang", False, False),
        ("sglang:additive", True, False),
        ("sglang", True, True),  # SGLang's own noisy file is the cost model, too
    ],
)
def test_every_step_of_a_live_run_is_sglangs(
    policy: str, overlap: bool, noisy: bool, sglang: Any, pair: Pair, nursery: Nursery,
    greedy: Greedy, tmp_path: Path,
) -> None:  # fmt: skip
    costs = write_costs(tmp_path / "costs.json", token_share=0.3, requests=8)
    model = load_cost_model(costs)
    exported = to_additive(model) if "additive" in policy else to_sps(model, GAMMA)
    if noisy:
        assert isinstance(exported, SpsTable)
        noise = np.random.default_rng(4).lognormal(0.0, 0.2, len(exported.sample_steps_per_sec))
        rates = tuple((np.array(exported.sample_steps_per_sec) * noise).tolist())
        exported = dataclasses.replace(exported, sample_steps_per_sec=rates)
        assert falling(exported)
        costs = tmp_path / "table.json"
    exported.save(tmp_path / "table.json")
    table = sglang.load_sps_table_from_path(str(tmp_path / "table.json"))
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy=policy, cost_model=costs
    )
    more = [] if overlap else ["--disable-overlap-schedule"]
    log = tmp_path / "steps"
    with nursery.start(
        [
            *arguments,
            *more,
            *("--speculative-dspark-step-log", str(log)),
            *("--speculative-dspark-sps-table-path", str(tmp_path / "table.json")),
        ],
        environment={
            "SGLANG_RAGGED_VERIFY_MODE": "compact",
            "SGLANG_DSPARK_DEBUG_DUMP": "core,reqs",
        },
        patch="tests.runtime.steer.patches:quick_step_log",
    ) as server:
        jobs = [Job(prompt=one, sampling=greedy_sampling(48)) for one in greedy.prompts]
        outcomes = serve(server.url, jobs, concurrency=12)
        assert [one.tokens for one in outcomes] == greedy.answers, server.log[-3000:]
        shown = server_info(server.url)["internal_states"][0]
        told = look(server.url)
        settle(log)
    assert told.settings.engine.kv_pool_tokens == shown["memory_usage"]["token_capacity"]
    assert told.settings.speculative
    said = "\n".join(lines(told))
    assert f"speculative_num_draft_tokens {GAMMA + 1}" in said
    assert f"this project's plugin decides there by --current {policy}" in said
    cfg = sglang.DSparkScheduleConfig(gamma=GAMMA)
    own = shown["dspark_info_record"]["records"]
    steps = list(read(log))
    assert len(own) == len(steps) > 100
    trimmed, aged, fresh = 0, 0, 0
    past: dict[str, list[Tensor]] = {}
    for step, theirs in zip(steps, own, strict=True):
        lengths = step.plan.lengths.tolist()
        assert [one["verify_len"] - 1 for one in theirs["reqs"]] == lengths
        assert [one["rid"] for one in theirs["reqs"]] == list(step.request_ids)
        assert [one["correct_drafts"] for one in theirs["reqs"]] == step.accepted.tolist()
        for r, name in enumerate(step.request_ids):
            age = int(step.state.stale_age[r])
            mine = past.setdefault(name, [])
            if age:
                assert confidences(step.state.stale_logits[r]).equal(mine[-age])
                aged += 1
            else:
                fresh += 1
                assert len(mine) < 2 or step.degraded
            mine.append(confidences(step.state.logits[r]))
        if step.degraded:
            assert theirs.get("budget") is None
            assert lengths == [GAMMA] * step.requests
            continue
        stale, now = confidences(step.state.stale_logits), confidences(step.state.logits)
        wanted = sglang.compute_verify_token_budget(
            history_survival_probs=torch.cumprod(stale, dim=1), sps_table=table, cfg=cfg
        )
        assert wanted.budget == theirs["budget"]
        assert wanted.predicted_step_seconds == pytest.approx(step.plan.predicted_step_s)
        chosen = sglang.ScheduleVerifyLensTopk.execute(
            confidence=now, budget=wanted.budget, cfg=cfg
        )
        assert (chosen - 1).tolist() == lengths
        trimmed += step.requests * GAMMA - sum(lengths)
    assert trimmed > 100
    assert aged > 500
    assert fresh >= 2 * len(greedy.prompts)
