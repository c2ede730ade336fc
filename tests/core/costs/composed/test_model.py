"""Composed cost models: published times, the shipped files, determinism, drafters, the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import make_composed_models as maker
from sglang_dspark.core.costs.composed.drafting import plan_of
from sglang_dspark.core.costs.composed.package import hub_configs
from sglang_dspark.core.costs.composed.targets import NAMED, Layout, target_of
from sglang_dspark.core.costs.library import SHIPPED
from sglang_dspark.core.costs.tables import UNIFORM, draft_seconds, verify_seconds
from tests.core.costs.composed.orders import composed

pytest.importorskip("aiconfigurator_core", reason="the extra operators is not installed")

ROOT = Path(__file__).parents[4]
PUBLISHED = json.loads((ROOT / "benchmarks" / "published_step_costs.json").read_text())["records"]
NEAR = 0.08


@pytest.mark.golden
def test_sglangs_published_endpoints_are_met_without_a_fit() -> None:
    """Qwen3-14B on H200: SGLang took the times while it captured graphs, over empty contexts."""
    tables = composed("qwen3-14b", "h200").tables(1024, 128)
    record = PUBLISHED["sglang-35413"]
    for tokens, ms in record["verify_ms"]:
        assert 1e3 * verify_seconds(tables, tokens, tokens // 8, 0.0, UNIFORM) == pytest.approx(
            ms, rel=NEAR
        )
    for requests, ms in record["draft_ms"]:
        assert 1e3 * draft_seconds(tables, requests) == pytest.approx(ms, rel=NEAR)


@pytest.mark.golden
def test_how_far_vllms_published_curve_is() -> None:
    """DeepSeek-V4-Flash on four B300, another engine: too dear to verify, too cheap to draft."""
    tables = composed("dsv4-flash", "b300", 4, 4, gamma=7).tables(1024, 256)
    record = PUBLISHED["vllm-fig2-cost"]
    for tokens, ms in record["verify_ms"]:
        if 64 <= tokens <= 1024:
            ours = 1e3 * verify_seconds(tables, tokens, -(-tokens // 8), 1024.0 * tokens, UNIFORM)
            assert 1.0 < ours / ms < 1.45
    for requests, ms in record["draft_ms"]:
        assert 0.6 < 1e3 * draft_seconds(tables, requests) / ms < 0.8


@pytest.mark.golden
@pytest.mark.parametrize(
    ("model", "gpu", "tp", "ep"), [("qwen3-14b", "h200", 1, 1), ("dsv4-flash", "b300", 4, 4)]
)
def test_the_command_writes_the_shipped_file_byte_for_byte(
    model: str, gpu: str, tp: int, ep: int, tmp_path: Path
) -> None:
    made = composed(model, gpu, tp, ep)
    made.save(tmp_path / "made.json")
    assert (tmp_path / "made.json").read_bytes() == (SHIPPED / f"{made.name}.json").read_bytes()


@pytest.mark.law
def test_the_same_order_gives_the_same_model() -> None:
    """Law: no clock, no path and no chance is in a composed file."""
    first = composed("qwen3-8b", "h100")
    composed.cache_clear()
    assert composed("qwen3-8b", "h100") == first


@pytest.mark.law
def test_the_shipped_models_are_what_the_page_says_they_are() -> None:
    """Law: the page's table is the files'; every model is there for every GPU, or left out."""
    page = (ROOT / "docs" / "prices.md").read_text(encoding="utf-8")
    models = maker.shipped()
    assert maker.matrix(models) in page
    said = page.count("\n- `")
    assert len(models) + said == len(list(maker.plans()))
    assert sum(path.stat().st_size for path in SHIPPED.glob("*-composed.json")) < 3_000_000


@pytest.mark.law
def test_every_shipped_composed_model_says_what_was_measured() -> None:
    """Law: and prices a step by tokens and requests alike, at most three times a plain decode."""
    for model in maker.shipped():
        assert model.operators is not None
        assert 0.8 < model.operators.measured_share < 1
        assert all("(silicon)" not in name for name in model.operators.not_measured)
        assert model.provenance.command.startswith("dspark prices build --model ")
        assert model.host is not None
        assert model.host.step_s == 0
        tables = model.tables(2048, 256)
        assert (np.diff(tables.verify_s) >= 0).all()
        assert (np.diff(tables.request_s) >= 0).all()
        assert (np.diff(tables.draft_s) >= 0).all()


@pytest.mark.example
def test_drafters_that_can_be_asked_for(tmp_path: Path) -> None:
    plain = composed("qwen3-14b", "h200", drafter="none")
    assert plain.draft is None
    assert plain.drafter is None
    assert plain.graph_tiers[:3] == (1, 2, 3)
    usual = composed("qwen3-14b", "h200")
    config = {
        "num_hidden_layers": 5, "hidden_size": 5120, "intermediate_size": 17408,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "block_size": 7, "markov_rank": 256,
        "target_layer_ids": [1, 10, 19, 28, 37],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = composed("qwen3-14b", "h200", drafter=str(tmp_path / "config.json"))
    assert own.draft is not None
    assert usual.draft is not None
    assert own.draft.seconds == usual.draft.seconds
    assert own.memory == usual.memory


@pytest.mark.law
def test_an_mtp_layer_drafts_in_sequence() -> None:
    """Law: twice the tokens take twice as long, where DSpark's block is drafted at once."""

    def first(drafter: str, gamma: int) -> float:
        model = composed("glm-5.2", "h200", 8, drafter=drafter, gamma=gamma)
        assert model.draft is not None
        return model.draft.seconds[0]

    assert first("mtp", 6) == pytest.approx(2 * first("mtp", 3), rel=1e-4)
    assert first("dspark", 6) < 1.5 * first("dspark", 3)


@pytest.mark.example
def test_deepseek_v4_drafts_with_stages_of_its_own_and_others_with_dense_layers() -> None:
    configs = hub_configs()
    for name in NAMED:
        plan = plan_of("", None, target_of(name, configs))
        assert plan is not None
        kind, gamma = ("stages", 5) if name.startswith("dsv4") else ("dspark", 7)
        assert (plan.kind, plan.gamma) == (kind, gamma)
        assert (plan.dense is None) == (kind == "stages")


@pytest.mark.law
def test_more_gpus_of_one_replica_are_never_slower_and_hold_more() -> None:
    """Law: for a dense model whose steps are long against its all-reduces."""
    one, two = (composed("qwen3-32b", "h200", tp) for tp in (1, 2))
    assert two.verify_curve.seconds[-1] < one.verify_curve.seconds[-1]
    assert two.kv_pool_tokens > one.kv_pool_tokens
    assert two.gpus == 2
    assert two.watts is not None
    assert two.watts.busy == 1400


@pytest.mark.example
def test_a_layout_counts_gpus_as_sglang_does() -> None:
    layout = Layout(tp=8, ep=8, dp=4)
    assert (layout.attention_tp, layout.share(9)) == (2, 3)
