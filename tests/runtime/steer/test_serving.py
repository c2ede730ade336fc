"""The built-in DSPARK of a real SGLang, steered: it trims, its answers stay plain decoding's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_dspark.logs.step_log import read
from tests.runtime.servers import Nursery, Server, dspark_arguments
from tests.runtime.serving_checks import Drafting, contexts_follow, replayed
from tests.runtime.serving_client import Job, metrics, serve, server_info, total
from tests.runtime.serving_scenes import (
    GAMMA,
    Greedy,
    Pair,
    greedy_sampling,
    write_costs,
    write_goodput,
)

COMPACT = {"SGLANG_RAGGED_VERIFY_MODE": "compact"}
NEW_TOKENS = 48
NO_CONFIDENCES = "SGLang had no confidences yet"


def answers(server: Server, greedy: Greedy) -> list[list[int]]:
    jobs = [Job(prompt=one, sampling=greedy_sampling(NEW_TOKENS)) for one in greedy.prompts]
    outcomes = serve(server.url, jobs, concurrency=12)
    assert server.exit_code() is None, server.log[-3000:]
    return [outcome.tokens for outcome in outcomes]


def block(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server_info(server.url)["internal_states"][0]
    return found


@pytest.mark.example
def test_the_built_in_without_a_table_verifies_everything(
    pair: Pair, nursery: Nursery, greedy: Greedy
) -> None:
    arguments = [*dspark_arguments(pair.target_folder, pair.drafter_folder, policy="fixed")]
    environment = {**COMPACT, "SGLANG_DSPARK_DEBUG_DUMP": "core"}
    with nursery.start(
        arguments, environment=environment, patch="tests.runtime.steer.patches:built_in"
    ) as server:
        assert answers(server, greedy) == greedy.answers
        found = block(server)
    records = found["dspark_info_record"]["records"]
    assert len(records) > 50
    assert all(one["num_verify_tokens"] == one["bs"] * (GAMMA + 1) for one in records)
    assert "dspark" not in found


@pytest.mark.example
def test_contexts_are_known_where_sglang_keeps_no_lengths_on_the_host(sglang: Any) -> None:
    from sglang_dspark.runtime.steer.hooks import context_of

    requests = [
        SimpleNamespace(origin_input_ids=[1] * prompt, output_ids=[2] * generated)
        for prompt, generated in ((8, 1), (5, 30))
    ]
    batch = SimpleNamespace(seq_lens_cpu=None, reqs=requests)
    assert context_of(batch).tolist() == [8, 34]
    batch.seq_lens_cpu = torch.tensor([9, 40], dtype=torch.int32)
    assert context_of(batch).tolist() == [9, 40]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A steered server."""

    policy: str
    overlap: bool = True
    mode: str = "compact"
    trims: bool = True

    def deployed(self, folder: Path, costs: Path) -> tuple[str, Path]:
        """(policy, cost model) as they are given; ``goodput`` from the worker lane's own files."""
        if self.policy != "goodput":
            return self.policy, costs
        policy, dear_drafts = write_goodput(folder, requests=8)
        return str(policy), dear_drafts


SCENES = {
    "global": Scene(policy="global"),
    "global, no overlap": Scene(policy="global", overlap=False),
    "sglang": Scene(policy="sglang"),
    "sglang, no overlap": Scene(policy="sglang:additive", overlap=False),
    "fixed:3": Scene(policy="fixed:3"),
    "verify all": Scene(policy="fixed", trims=False),
    "none": Scene(policy="none", overlap=False),
    "threshold": Scene(policy="threshold:0.6"),
    "early_stop": Scene(policy="early_stop", overlap=False),
    "cap-accept": Scene(policy="global", mode="cap-accept"),
    "goodput": Scene(policy="goodput"),
    "goodput, no overlap": Scene(policy="goodput", overlap=False),
}


@pytest.fixture(scope="session")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_costs(tmp_path_factory.mktemp("c") / "costs.json", token_share=0.2, requests=8)


@pytest.mark.law
@pytest.mark.parametrize("name", SCENES)
def test_steered_answers_are_those_of_plain_decoding(
    name: str, pair: Pair, nursery: Nursery, greedy: Greedy, costs: Path, tmp_path: Path
) -> None:
    scene = SCENES[name]
    log = tmp_path / "steps"
    policy, prices = scene.deployed(tmp_path, costs)
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy=policy, cost_model=prices
    )
    overlap = [] if scene.overlap else ["--disable-overlap-schedule"]
    with nursery.start(
        [*arguments, *overlap, "--speculative-dspark-step-log", str(log)],
        environment={"SGLANG_RAGGED_VERIFY_MODE": scene.mode},
        patch="tests.runtime.steer.patches:quick_step_log",
    ) as server:
        assert answers(server, greedy) == greedy.answers
        summary, shown = block(server)["dspark"], metrics(server.url)
        counts = replayed(log)
    assert summary["policy"] == scene.policy
    assert summary["steps"] > 50
    assert (summary["trimmed_tokens"] > 0) == scene.trims
    assert summary["committed_tokens"] == pytest.approx(NEW_TOKENS * len(greedy.prompts), rel=0.2)
    full = summary["drafted_tokens"] // GAMMA * (GAMMA + 1)
    compact = scene.mode == "compact"
    assert (summary["computed_tokens"] < full) == (compact and scene.trims)
    verified = total(shown, "sglang:dspark_verified_tokens_total")
    assert (verified > 0) == (scene.policy != "none"), sorted(shown)
    # The built-in verifies everything until its relay has run; ``sglang`` decides as it does.
    early = summary["degraded_steps"]
    assert set(early) <= ({NO_CONFIDENCES} if "sglang" in scene.policy else set())
    assert counts.different == 0, counts.first_different
    assert counts.same >= 0.9 * counts.steps
    records = list(read(log))
    assert contexts_follow(records) > 500
    if scene.policy == "goodput":
        # The built-in drafts for everyone, whatever the plan says.
        found = Drafting.of(records, obeyed=False)
        assert found.everyone == counts.steps
        assert not all(record.plan.draft_next.all() for record in records)
        assert any(record.state.prefills_per_step > 0 for record in records)
    print(name, counts, summary["verified_tokens"], summary["drafted_tokens"])
