"""What a full batch and a request at the context's limit take, and that there is room for it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_client import Job, serve
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs

pytest.importorskip("sglang")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sglang.srt.mem_cache import common
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from sglang_dspark.runtime.worker import algorithm
    from sglang_dspark.runtime.worker.assembly import check_room, logits_bytes

CONTEXT = 96


def arguments(gamma: int, **given: Any) -> Any:
    """As much of the server's arguments as sizes a request's row."""
    values: dict[str, Any] = {
        "speculative_algorithm": "DSPARK",
        "speculative_num_steps": gamma,
        "speculative_eagle_topk": 1,
        "max_speculative_num_draft_tokens": gamma + 1,
        "page_size": 1,
    }
    return SimpleNamespace(**values | given)


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is registered, as the plugin does in a server."""
    monkeypatch.setattr(
        SpeculativeAlgorithm, "from_string", lambda name: SimpleNamespace(has_draft_kv=lambda: True)
    )


@pytest.mark.law
@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("gamma", [1, 7, 8, 15, 31])
def test_a_row_holds_what_a_decode_step_reserves_at_the_contexts_limit(
    gamma: int, page: int
) -> None:
    """Law: committed + reserved tokens fit, for any request that the context allows."""
    given = arguments(gamma, page_size=page)
    own = common.get_req_to_token_extra_context_len(given)
    reserved = common.get_alloc_reserve_per_decode(given)
    assert reserved == 2 * (gamma + 1)
    found = algorithm._row_headroom(own, given)
    assert found >= reserved
    # Without the hook a request that ends 4 tokens before the limit fits up to gamma 7.
    assert (own + 4 >= reserved) == (gamma <= 7)


@pytest.mark.example
@pytest.mark.parametrize("name", [None, "EAGLE", "DFLASH"])
def test_rows_of_other_algorithms_are_left_alone(name: str | None) -> None:
    assert algorithm._row_headroom(12, arguments(15, speculative_algorithm=name)) == 12


@pytest.mark.law
def test_a_batch_whose_logits_cannot_fit_is_refused_with_one_that_can() -> None:
    """Law: the number that the refusal names is the largest that passes."""
    shape = {"gamma": 7, "vocab_size": 151_936}
    assert 17e6 < logits_bytes(**shape) < 19e6
    room = {**shape, "free_bytes": 8 << 30}
    check_room(requests=algorithm.MOST_REQUESTS, **room)
    with pytest.raises(
        ValueError, match=r"--max-running-requests 512: .* give at most (\d+)"
    ) as no:
        check_room(requests=512, **room)
    most = int(str(no.value).split("at most ")[1].split(",")[0])
    check_room(requests=most, **room)
    with pytest.raises(ValueError, match="logits"):
        check_room(requests=most + 1, **room)


@pytest.mark.law
def test_requests_of_gamma_15_run_to_the_contexts_limit(
    pair: Pair, nursery: Nursery, greedy: Greedy, tmp_path: Path
) -> None:
    """Law: each request's tokens are plain decoding's; no row runs into the next."""
    drafter = tmp_path / "drafter-15"
    shutil.copytree(pair.drafter_folder, drafter)
    config = json.loads((drafter / "config.json").read_text())
    (drafter / "config.json").write_text(json.dumps(config | {"block_size": 15}))
    costs = write_costs(tmp_path / "costs.json", token_share=0.05, requests=8, gamma=15)
    words = dspark_arguments(pair.target_folder, drafter, policy="fixed", cost_model=costs)
    # None of those that come so near that an answer of theirs would end before the limit.
    asked = [
        (prompt, answer)
        for prompt, answer in zip(greedy.prompts, greedy.answers, strict=True)
        if CONTEXT - len(answer) <= len(prompt) < CONTEXT - 8
    ][:16]
    assert len(asked) > 8
    jobs = [
        Job(prompt=prompt, sampling=greedy_sampling(CONTEXT - len(prompt))) for prompt, _ in asked
    ]
    with nursery.start([*words, "--context-length", str(CONTEXT)]) as server:
        outcomes = serve(server.url, jobs, concurrency=8)
    for (prompt, answer), outcome in zip(asked, outcomes, strict=True):
        assert outcome.tokens == answer[: len(outcome.tokens)], outcome.message
        assert len(prompt) + len(outcome.tokens) >= CONTEXT - 4, "ended before the limit"
