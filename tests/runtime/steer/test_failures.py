"""Refused at the start, or verified in full and counted: SGLang's own policy never comes back."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.runtime.servers import Nursery, Server, dspark_arguments
from tests.runtime.serving_checks import replayed
from tests.runtime.serving_client import Job, metrics, serve, server_info, total
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs
from tests.waiting import wait_until

COMPACT = {"SGLANG_RAGGED_VERIFY_MODE": "compact"}


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    return write_costs(tmp_path / "costs.json", token_share=0.2, requests=8)


def ended(server: Server) -> str:
    """The log of a server that was refused."""
    with server:
        wait_until(lambda: server.exit_code() is not None)
        assert server.exit_code() != 0
        return server.log


@pytest.mark.example
@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ("renamed_target", "HostConfidenceBudgetPlanner.compute_budget"),
        ("changed_signature", "takes (confidence, pool), not (confidence, generation"),
    ],
)
def test_a_changed_release_is_refused(
    patch: str, sentence: str, pair: Pair, nursery: Nursery, costs: Path
) -> None:
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    server = nursery.start(
        arguments, environment=COMPACT, patch=f"tests.runtime.steer.patches:{patch}", wait=False
    )
    log = ended(server)
    lines = [line for line in log.splitlines() if line.startswith("sglang-dspark:")]
    assert len(lines) == 1, log[-3000:]
    assert sentence in lines[0]
    assert "install sglang==0.5.21" in lines[0]
    assert "Traceback" not in log


@pytest.mark.example
def test_a_planner_that_does_not_listen_is_refused(
    pair: Pair, nursery: Nursery, costs: Path
) -> None:
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    server = nursery.start(
        arguments, environment=COMPACT, patch="tests.runtime.steer.patches:deaf_planner", wait=False
    )
    assert "where the policy says" in ended(server)


@pytest.mark.example
@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        ([], {}, "set SGLANG_RAGGED_VERIFY_MODE=compact"),
        (
            ["--speculative-dspark-align-verify-tokens-to-graph-tier"],
            COMPACT,
            "leave it out, cost models know the tiers",
        ),
        (["--speculative-dspark-policy", "globall"], COMPACT, "did you mean 'global'"),
    ],
)
def test_settings_that_cannot_be_steered_are_refused(
    flags: list[str],
    environment: dict[str, str],
    sentence: str,
    pair: Pair,
    nursery: Nursery,
    costs: Path,
) -> None:
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    log = ended(nursery.start([*arguments, *flags], environment=environment, wait=False))
    assert sentence in log
    assert "Traceback" not in log


@pytest.mark.law
@pytest.mark.parametrize("policy", ["global", "early_stop"])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_failing_policy_verifies_in_full_and_is_counted(
    policy: str, overlap: bool, pair: Pair, nursery: Nursery, greedy: Greedy, costs: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    log = tmp_path / "steps"
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy=policy, cost_model=costs
    )
    more = [] if overlap else ["--disable-overlap-schedule"]
    with nursery.start(
        [*arguments, *more, "--speculative-dspark-step-log", str(log)],
        environment=COMPACT,
        patch="tests.runtime.steer.patches:failing_policy",
    ) as server:
        jobs = [Job(prompt=one, sampling=greedy_sampling(48)) for one in greedy.prompts]
        outcomes = serve(server.url, jobs, concurrency=12)
        assert [one.tokens for one in outcomes] == greedy.answers, server.log[-3000:]
        summary = server_info(server.url)["internal_states"][0]["dspark"]
        found = metrics(server.url)
        counts = replayed(log)
        said = server.log.count("DSPARK policy failed")
    failed = summary["degraded_steps"]["the policy failed"]
    assert failed >= 0.25 * summary["steps"]
    assert total(found, "sglang:dspark_degraded_steps_total", reason="the policy failed") > 0, (
        json.dumps(sorted(name for name in found if "degraded" in name))
    )
    assert said == 1
    assert summary["trimmed_tokens"] > 0
    assert counts.different == 0, counts.first_different
    assert counts.degraded == failed


def force(server: Server, share: float) -> None:
    """SGLang's own switch, by which profilers drive the number of verified tokens.

    This release documents ``null`` for off and refuses it over HTTP.
    """
    body = {"server_args": {"dspark_force_budget_frac": share}}
    request = urllib.request.Request(
        f"{server.url}/set_internal_state",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=30).close()


@pytest.mark.example
@pytest.mark.parametrize("policy", ["global", "none", "early_stop"])
def test_a_forced_budget_is_obeyed_and_counted(
    policy: str, pair: Pair, nursery: Nursery, greedy: Greedy, costs: Path
) -> None:
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy=policy, cost_model=costs
    )
    jobs = [Job(prompt=one, sampling=greedy_sampling(48)) for one in greedy.prompts[:16]]
    shares, steps, labels = [], [0], []
    verified = drafted = 0
    with nursery.start([*arguments, "--disable-overlap-schedule"], environment=COMPACT) as server:
        for share in (None, 1.0, 0.5):
            if share is not None:
                force(server, share)
            outcomes = serve(server.url, jobs, concurrency=8)
            assert [one.tokens for one in outcomes] == greedy.answers[:16]
            found = server_info(server.url)["internal_states"][0]["dspark"]
            shares.append(
                (found["verified_tokens"] - verified) / (found["drafted_tokens"] - drafted)
            )
            verified, drafted = found["verified_tokens"], found["drafted_tokens"]
            steps.append(found["steps"])
            labels.append(found["degraded_steps"].get("SGLang's forced budget", 0))
    assert shares[0] < 0.9
    assert shares[1] == 1.0
    assert 0.4 <= shares[2] <= 0.5
    assert labels == [n - steps[1] for n in steps[1:]]


@pytest.mark.example
def test_nan_confidences_harm_nobody(
    pair: Pair, nursery: Nursery, greedy: Greedy, costs: Path, tmp_path: Path
) -> None:
    log = tmp_path / "steps"
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    with nursery.start(
        [*arguments, "--speculative-dspark-step-log", str(log)],
        environment=COMPACT,
        patch="tests.runtime.steer.patches:nan_confidences",
    ) as server:
        jobs = [Job(prompt=one, sampling=greedy_sampling(48)) for one in greedy.prompts]
        outcomes = serve(server.url, jobs, concurrency=12)
        assert [one.tokens for one in outcomes] == greedy.answers, server.log[-3000:]
        summary = server_info(server.url)["internal_states"][0]["dspark"]
        counts = replayed(log)
    assert set(summary["degraded_steps"]) == {"confidences were NaN"}
    assert counts.different == 0, counts.first_different
