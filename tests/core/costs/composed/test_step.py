"""A composed step: the package's own decode step where it is one, attention, the form."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_dspark.core.costs.composed.operators import ASSUMED, MEASURED
from sglang_dspark.core.costs.composed.step import (
    Step,
    attention,
    body,
    compose_step,
    seconds,
)
from tests.core.costs.composed.orders import operators_of

pytest.importorskip("aiconfigurator_core", reason="the extra operators is not installed")


@pytest.mark.law
@pytest.mark.parametrize("requests", [1, 8, 64, 200])
@pytest.mark.parametrize("context", [200, 5000])
@pytest.mark.parametrize(
    ("model", "tp"), [("qwen3-8b", 1), ("qwen3-30b-a3b", 1), ("llama-3.1-70b", 4)]
)
def test_one_token_of_each_request_is_the_packages_decode_step(
    model: str, tp: int, requests: int, context: int
) -> None:
    """Law: without drafts the composed step is what aiconfigurator-core says of a decode step."""
    operators = operators_of(model, "h200", tp)
    ours = body(operators, requests) + attention(operators, requests, context)
    kernels = seconds([one for one in ours if one.name != "sampling"])
    theirs = operators._handle.decode_step_latency(requests, context - 1, 2) / 1e3
    assert kernels == pytest.approx(theirs, rel=1e-3)


@pytest.mark.law
@pytest.mark.parametrize(("model", "gpu", "tp"), [("qwen3-14b", "h200", 1), ("glm-5.2", "h200", 8)])
def test_attention_is_priced_at_requests_and_not_at_tokens(model: str, gpu: str, tp: int) -> None:
    """Law: what a step's attention costs is blind to how many tokens of each request it verifies;
    priced at the tokens it would cost several times as much."""
    operators = operators_of(model, gpu, tp)
    at_requests = seconds(attention(operators, 32, 4096))
    assert {one.name for one in attention(operators, 32, 4096)} == {"attention"}
    at_tokens = seconds(attention(operators, 32 * 8, 4096))
    assert at_tokens > 2 * at_requests
    rest = {one.name for one in body(operators, 256)}
    assert ("attention" in rest) == (model == "glm-5.2"), "the projections inside a module"


@pytest.mark.law
@pytest.mark.parametrize("model", ["qwen3-14b", "gemma4-12b", "qwen3-30b-a3b"])
def test_the_form_is_monotone_and_its_error_is_what_it_says(model: str) -> None:
    """Law: neither more tokens nor more requests nor more context make a step cheaper."""
    operators = operators_of(model, "h200")
    requests, tokens = (1, 2, 8, 32, 128, 256), (1, 8, 64, 256, 1024, 2048)
    step = compose_step(operators, requests=requests, tokens=tokens, width=8, pool_tokens=300_000)
    assert (np.diff(step.body_s) >= 0).all()
    assert (np.diff(step.alpha_s) >= 0).all()
    assert step.alpha_s[0] == 0
    assert step.token_s > 0
    at, context = step.worst
    others = np.interp(at * 8, tokens, step.body_s)
    whole = others + seconds(attention(operators, at, context))
    alpha = step.alpha_s[requests.index(at)]
    form = others + step.first_attention_s + alpha + step.token_s * at * context
    assert abs(form - whole) / whole == pytest.approx(step.errors.max(), rel=1e-6)


@pytest.mark.law
@pytest.mark.parametrize("gamma", [3, 7, 15])
def test_a_longer_block_leaves_the_attention_of_a_step_as_it_was(gamma: int) -> None:
    """Law: alpha(R) and the price of a context token are the same whatever is verified."""
    operators = operators_of("qwen3-14b", "h200")
    requests = (1, 8, 32, 128)

    def step(width: int) -> Step:
        tokens = tuple(width * r for r in requests)
        return compose_step(
            operators, requests=requests, tokens=tokens, width=width, pool_tokens=300_000
        )

    one, other = step(gamma + 1), step(2 * gamma + 2)
    assert other.token_s == pytest.approx(one.token_s, rel=0.02)
    assert other.body_s[-1] > one.body_s[-1]
    for r, a, b in zip(requests, one.alpha_s, other.alpha_s, strict=True):
        assert a == pytest.approx(b, abs=0.05 * seconds(attention(operators, r, 4096)))


@pytest.mark.example
def test_what_no_table_holds_comes_from_the_data_sheet_and_says_so() -> None:
    """SGLang's tables have no attention of MiniMax-M3 and no MoE of Kimi-K3 for eight Hoppers."""
    operators = operators_of("minimax-m3", "h200", 8)
    (priced,) = attention(operators, 32, 4096)
    assert priced.source == ASSUMED
    held = 32 * 4095 * operators.kv_bytes / 8
    assert priced.seconds == pytest.approx(held / (0.8 * 4.8e12), rel=1e-6)
    sources = {one.name: one.source for one in body(operators, 256)}
    assert sources["moe"] == MEASURED
    assert sources["attention"] == ASSUMED
    kimi = operators_of("kimi-k3", "h200", 8, 8)
    assert {one.source for one in body(kimi, 64) if one.name == "moe"} == {ASSUMED}


@pytest.mark.law
@pytest.mark.parametrize("rows", [513, 1024, 2048])
def test_projections_cost_at_most_what_their_halves_do(rows: int) -> None:
    """Law: beyond the batches that were timed an extrapolation may not run away."""
    operators = operators_of("glm-5.2", "h200", 8)

    def projections(tokens: int) -> float:
        return seconds([one for one in body(operators, tokens) if one.name == "attention"])

    assert projections(rows) <= 2 * projections(-(-rows // 2)) * (1 + 1e-9)


@pytest.mark.law
def test_groups_with_requests_of_their_own_share_requests_and_tokens() -> None:
    """Law: with dp 4 the fullest group attends to a quarter of the requests, rounded up."""
    shared, alone = (operators_of("qwen3-30b-a3b", "h200", 4, 4, dp) for dp in (4, 1))
    assert shared.layout.share(33) == 9
    assert attention(shared, 33, 2048) == attention(shared, 36, 2048)
    assert shared.kv_bytes == pytest.approx(alone.kv_bytes)
