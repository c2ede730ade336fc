"""The request log on SGLang 0.5.21, and SGLang's own record of its DSPARK steps pulled from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sglang.srt.speculative.dspark_components")

from sglang_dspark.logs.step_log import read
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_client import Job, serve
from tests.runtime.serving_scenes import GAMMA, Pair
from tests.runtime.test_request_log_served import (
    recorded_by,
    shared_beginnings,
)
from tests.runtime.test_request_log_served import (
    test_a_log_that_stops_does_not_stop_the_server as test_a_stopped_log,
)
from tests.runtime.test_request_log_served import (
    test_every_request_is_on_record_as_it_was_answered as test_every_request,
)
from tests.runtime.test_request_log_served import (
    test_hashes_reuse_what_the_radix_cache_reuses as test_hashes,
)
from traces.record import main

__all__ = ["shared_beginnings", "test_a_stopped_log", "test_every_request", "test_hashes"]

TOLD = {
    "SGLANG_RAGGED_VERIFY_MODE": "compact",
    "SGLANG_DSPARK_DEBUG_DUMP": "core,step_cpu_time,reqs",
}


@pytest.mark.law
def test_sglangs_own_record_of_its_steps_becomes_a_step_log(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    arguments = dspark_arguments(pair.target_folder, pair.drafter_folder, policy="fixed")
    sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    jobs = [Job(prompt=pair.conversation(n)[:30], sampling=sampling) for n in range(12)]
    log, out = tmp_path / "log", tmp_path / "live"
    with nursery.start(
        recorded_by(arguments, log), environment=TOLD, patch="tests.runtime.steer.patches:built_in"
    ) as server:
        outcomes = serve(server.url, jobs, concurrency=3)
        assert (
            main(["--url", server.url, "-o", str(out), "--seconds", "0.5", "--every", "0.2"]) == 0
        )
    steps = list(read(out))
    assert len({step.step for step in steps}) == len(steps)
    taken: Counter[str] = Counter()
    committed: Counter[str] = Counter()
    for step in steps:
        assert np.isfinite(step.state.logits).all()
        assert step.shape == "ragged"
        assert step.state.gamma == GAMMA
        for rid, accepted in zip(step.request_ids, step.accepted, strict=True):
            taken[rid] += 1
            committed[rid] += 1 + int(accepted)
    for outcome in outcomes:
        rid = outcome.meta["id"]
        assert taken[rid] >= outcome.meta["spec_verify_ct"]
        # The first token is the prefill's; the last step may commit beyond the end.
        assert committed[rid] >= outcome.meta["completion_tokens"] - 1
    aged = np.concatenate([step.state.stale_age for step in steps])
    assert set(aged.tolist()) == {0, 2}
    assert [step.end_s for step in steps] == sorted(step.end_s for step in steps)
