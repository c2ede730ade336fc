"""The profiler against a real server: what is pinned is verified, and the policy gets it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.runtime.profile import command as profile
from sglang_dspark.server_client import ServerClient
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_checks import replayed
from tests.runtime.serving_client import server_info
from tests.runtime.serving_scenes import GAMMA, Pair


@pytest.mark.example
def test_a_server_is_profiled_and_left_as_it_was(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "costs.json"
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="fixed:2", kv_tokens=8192, requests=4
    )
    arguments += ["--speculative-dspark-step-log", str(log)]
    with nursery.start(arguments, patch="tests.runtime.serving_patches:quick_step_log") as server:
        # A busy machine may time a bigger step faster: what is tested is not its clock.
        words = ["--url", server.url, "-o", str(out), "--quick", "--steps", "4", "--anyway"]
        assert profile.main(words) == 0
        client = ServerClient(server.url)
        control = client.state()["dspark_control"]
        assert control["force_length"] is None
        assert control["gamma"] == GAMMA
        refused = client.post("/set_internal_state", {"server_args": {"dspark_force_length": 99}})
        assert not any(refused)
        assert client.generate([[20, 21]], new_tokens=9, temperature=0.0, timeout_s=60)
        summary = server_info(server.url)["internal_states"][0]["dspark"]
        counts = replayed(log)
    forced = summary["degraded_steps"]["length was forced"]
    assert 0 < forced < summary["steps"]
    assert counts.degraded == forced
    assert counts.different == 0
    lengths = summary["requests_by_length"]
    assert all(lengths[k] for k in (0, 2, GAMMA // 2, GAMMA))
    model = load_cost_model(out)
    assert model.valid_range.tokens == (1, 4 * (GAMMA + 1))
    assert model.draft is not None
    assert model.kv_pool_tokens == 8192
