"""Cost-model files: what is refused and with which sentence; what ships and where it came from."""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.costs.library import SHIPPED, load_cost_model, shipped_cost_models
from sglang_dspark.core.costs.model import CostModel, as_json, decode_cost_model

ROOT = Path(__file__).parents[3]
COLLECTED = ROOT.parent / "shared" / "data" / "published" / "cost_curves.json"
B300 = "b300x4-dsv4-flash-vllm"
H200 = "h200-qwen3-14b-sglang-pr35413"


def generator() -> Any:
    path = ROOT / "benchmarks" / "make_cost_models.py"
    spec = importlib.util.spec_from_file_location("make_cost_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(keys: str, new: Any) -> dict[str, Any]:
    """The B300 file with the value at the dotted path set, or removed when ``new`` is ``...``."""
    value: dict[str, Any] = json.loads((SHIPPED / f"{B300}.json").read_text())
    *path, last = keys.split(".")
    inner: Any = value
    for key in path:
        inner = inner[int(key) if key.isdigit() else key]
    if new is ...:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = new
    return value


WRONG = [
    ("schema_version", 4, "schema_version 4 is not known; this release reads 1, 2, 3"),
    ("schema_version", 1, "the 'drafter' block is one of schema 2; set schema_version to 2"),
    ("drafter.name", " ", "drafter name is empty; write whose drafting the model prices"),
    ("drafter.acceptance", "", "drafter acceptance is empty; name a profile, or leave the key"),
    ("drafter.acceptence", "x", "unknown key 'acceptence'; did you mean 'acceptance'?"),
    ("name", " ", "the cost model's name is empty"),
    ("kind", "tabel", "kind 'tabel' is not known; use one of table, additive, roofline"),
    ("kind", "additive", "kind 'additive' must not carry a 'table' block"),
    ("table", ..., "kind 'table' lacks its 'table' block"),
    ("tabel", 1, "unknown key 'tabel'; did you mean 'table'?"),
    ("draft.gama", 7, "draft: unknown key 'gama'; did you mean 'gamma'?"),
    ("kind", ..., "missing required field `kind`"),
    ("prefill", ..., "the 'prefill' block is missing; only kind 'roofline' derives it"),
    (
        "table.seconds.2",
        0.004,
        "seconds must not decrease: 0.004 at 4 tokens after 0.005162 at 2; measure again or take "
        "the running maximum",
    ),
    ("table.seconds.0", 0, "the first seconds 0 must be a finite number above 0"),
    ("table.seconds.0", -1.0, "seconds -1 at 1 tokens is no time"),
    ("table.seconds.0", float("inf"), "seconds inf at 1 tokens is no time"),
    ("table.seconds.0", "fast", "Expected `float`, got `str`"),
    ("table.seconds", [0.1], "88 tokens but 1 seconds; give one time per probe"),
    ("table.tokens.1", 1, "tokens must increase strictly: 1 after 1"),
    ("table.tokens.0", 0, "tokens start at 0; the smallest size is 1"),
    ("table.between", "stairs", "between 'stairs' is not known; use one of staircase, linear"),
    ("draft.seconds.1", 0.0001, "seconds must not decrease: 0.0001 at 2 requests after 0.000883"),
    ("draft.gamma", 0, "gamma 0 must be a finite number of at least 1"),
    ("prefill.token_s", 0, "token_s 0 must be a finite number above 0"),
    ("prefill.pair_s", -1e-9, "pair_s -1e-09 must be a finite number of at least 0"),
    ("host.step_s", -1, "step_s -1 must be a finite number of at least 0"),
    ("graphs.tiers_tokens.1", 1, "tiers_tokens must increase strictly: 1 after 1"),
    ("graphs.beyond_last_s", 0.1, "would price sizes beyond 1024 tokens twice"),
    ("context.token_s", -1.0, "token_s -1 must be a finite number of at least 0"),
    ("memory.gpus", 0, "gpus 0 must be a finite number of at least 1"),
    ("memory.usable_share", 1.5, "usable_share 1.5 must lie in (0, 1]"),
    ("memory.weights_bytes", 10**13, "leave no KV memory in 0.88 of 4 x 288.0 GB"),
    ("watts.busy", 1.0, "watts busy 1 must be a finite number of at least 560"),
    ("valid_range.tokens", [1, 20000], "reaches 20000 tokens but the last probe is at 16384"),
    ("valid_range.requests", [1, 512], "reaches 512 requests but the last probe is at 256"),
    ("valid_range.tokens", [9, 8], "valid_range tokens [9, 8] must run upwards from at least 1"),
    (
        "operators",
        {"source": "x", "version": "1", "measured_share": 1.5, "not_measured": []},
        "operators measured_share 1.5 must lie in [0, 1]",
    ),
    (
        "operators",
        {"source": " ", "version": "1", "measured_share": 1.0, "not_measured": []},
        "operators source is empty",
    ),
    ("provenance.origin", "guess", "origin 'guess' is not known; use one of measured, published"),
    ("provenance.source", "", "provenance source is empty; write where the numbers came from"),
]


@pytest.mark.example
@pytest.mark.parametrize(("keys", "new", "sentence"), WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(keys: str, new: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"file\.json: ") as raised:
        decode_cost_model(changed(keys, new), where="file.json")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.example
def test_unreadable_files_and_unknown_names_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dspark list cost-models shows those that ship"):
        load_cost_model("b300")
    with pytest.raises(ValueError, match="did you mean 'h100-qwen3-8b-analytic'"):
        load_cost_model("h100-qwen3-8b-analytc")
    with pytest.raises(ValueError, match=r"absent\.json: cannot read: No such file"):
        load_cost_model(tmp_path / "absent.json")
    cut = tmp_path / "cut.json"
    cut.write_text((SHIPPED / f"{B300}.json").read_text()[:300])
    with pytest.raises(ValueError, match=r"cut\.json:\d+: not valid JSON"):
        load_cost_model(cut)
    cut.write_text("[]")
    with pytest.raises(ValueError, match=r"cut\.json: Expected `object`, got `array`"):
        load_cost_model(cut)


@pytest.mark.example
def test_a_model_without_memory_says_so_when_its_pool_is_asked_for() -> None:
    model = decode_cost_model(changed("memory", ...), where="file.json")
    assert model.gpus == 4
    with pytest.raises(ValueError, match="has no memory block; add one or set kv_pool_tokens"):
        _ = model.kv_pool_tokens


@pytest.mark.example
def test_a_pool_read_from_the_servers_log_wins_over_the_derived_one() -> None:
    model = decode_cost_model(changed("memory.kv_pool_tokens", 123456), where="file.json")
    assert model.kv_pool_tokens == 123456


@pytest.mark.law
@pytest.mark.parametrize("name", shipped_cost_models())
def test_a_saved_model_loads_as_the_same_model(name: str, tmp_path: Path) -> None:
    model = load_cost_model(name)
    model.save(tmp_path / "copy.json")
    copy = load_cost_model(tmp_path / "copy.json")
    assert copy == replace(model, name="copy"), "a file goes by its own name"
    assert (tmp_path / "copy.json").read_text() == (SHIPPED / f"{name}.json").read_text()


@pytest.mark.law
@pytest.mark.parametrize("name", shipped_cost_models())
def test_every_shipped_model_is_complete_and_says_where_its_parts_came_from(name: str) -> None:
    model = load_cost_model(name)
    assert model.name == name
    blocks = {key: block for key, block in as_json(model).items() if isinstance(block, dict)}
    for part in ("draft", "prefill", "host", "graphs", "context", "memory", "watts"):
        assert blocks[part]["origin"] in ("published", "composed", "analytic")
        assert blocks[part]["note"]
    assert (model.operators is not None) == (model.provenance.origin == "composed")
    assert model.kv_pool_tokens > 50_000
    tables = model.tables(2048, 256)
    assert (np.diff(tables.verify_s) >= 0).all()
    assert (np.diff(tables.draft_s) >= 0).all()
    assert 1e-3 < tables.verify_s[1] < 0.03


@pytest.mark.golden
def test_the_generator_writes_the_shipped_files_byte_for_byte(tmp_path: Path) -> None:
    """Those that are not composed; of these tests/core/costs/composed asks the same."""
    assert generator().main(["--out", str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = [path for path in SHIPPED.glob("*.json") if not path.stem.endswith("-composed")]
    assert written == {path.name: path.read_bytes() for path in shipped}
    assert len(written) == 14


@pytest.mark.golden
def test_vllms_published_anchors_are_reproduced() -> None:
    tables = load_cost_model(B300).tables(2048, 256)
    assert tables.verify_s[1024] == 0.020634
    assert tables.verify_s[1025] == 0.104489
    assert tables.draft_s[1] == 0.000883
    assert tables.draft_s[256] == 0.00538
    assert tables.context_reference_tokens == 8192


@pytest.mark.golden
def test_sglangs_published_endpoints_are_reproduced() -> None:
    model = load_cost_model(H200)
    tables = model.tables(1024, 128)
    assert [tables.verify_s[m] for m in (8, 16, 1024)] == [0.00871, 0.00877, 0.04234]
    assert [tables.draft_s[r] for r in (1, 2, 128)] == [0.00174, 0.00178, 0.00737]
    assert len(model.graph_tiers) == 35
    assert model.valid_range.tokens == (8, 1024)
    assert model.valid_range.requests == (1, 128)


def _collected(key: str) -> dict[str, Any]:
    if not COLLECTED.exists():
        pytest.skip("the collected publications are not beside this checkout")
    records = json.loads(COLLECTED.read_text())["records"]
    return next(copy.deepcopy(r) for r in records if r["id"] == key)


def _stairs(pairs: list[list[float]], probe: int) -> float:
    """The tread of a published staircase that ends at ``probe``, drawn as lines and risers."""
    return next(y for x, y in pairs if x >= probe * 0.998)


@pytest.mark.golden
def test_the_b300_tables_are_the_published_staircases() -> None:
    record = _collected("vllm-fig2-cost")
    tables = load_cost_model(B300).tables(16384, 256)
    stairs = record["verify_table_monotone_staircase"]
    before = 1
    for probe in load_cost_model(B300).graph_tiers[1:]:
        tread = tables.verify_s[before + 1 : probe + 1]
        np.testing.assert_allclose(tread, _stairs(stairs, probe) / 1e3, rtol=1e-6)
        before = probe
    eager = [pair for pair in stairs if pair[1] > 100]
    for m in range(1537, 16385, 7):
        line = np.interp(m, [x for x, _ in eager], [y for _, y in eager])
        assert tables.verify_s[m] == pytest.approx(line / 1e3, rel=2e-3)
    drafts = record["draft_table"]
    for r in range(8, 257, 8):
        np.testing.assert_allclose(tables.draft_s[r - 7 : r + 1][-3:], _stairs(drafts, r) / 1e3)


@pytest.mark.golden
def test_the_inputs_kept_beside_the_generator_are_the_collected_ones() -> None:
    kept = json.loads((ROOT / "benchmarks" / "published_step_costs.json").read_text())["records"]
    curve = _collected("vllm-fig2-cost")
    assert [y for _, y in kept["vllm-fig2-cost"]["verify_ms"]] == [
        y for _, y in curve["verify_ms_median_by_tokens"]
    ]
    assert kept["vllm-fig2-cost"]["draft_ms"] == curve["draft_ms_median_by_requests"]
    for (kept_m, _), (m, _) in zip(
        kept["vllm-fig2-cost"]["verify_ms"], curve["verify_ms_median_by_tokens"], strict=True
    ):
        assert kept_m == pytest.approx(m, rel=2e-3)
    ends = _collected("sglang-35413")["step_cost"]
    for mine, theirs in (
        ("verify_ms", "verify_ms_by_tokens"),
        ("draft_ms", "draft_ms_by_requests"),
    ):
        assert {str(m): t for m, t in kept["sglang-35413"][mine]} == ends[theirs]


@pytest.mark.example
def test_a_roofline_file_needs_only_the_config_the_sheet_and_the_efficiency() -> None:
    full = load_cost_model("h100-qwen3-4b-analytic")
    kept = ("schema_version", "name", "kind", "provenance", "valid_range", "fit_error", "roofline")
    short = {key: value for key, value in as_json(full).items() if key in kept}
    model = decode_cost_model(json.loads(json.dumps(short)), where="short.json")
    assert isinstance(model, CostModel)
    assert model.kv_pool_tokens == full.kv_pool_tokens
    assert model.graph_tiers == full.graph_tiers
    np.testing.assert_allclose(
        model.tables(512, 64).draft_s, full.tables(512, 64).draft_s, rtol=1e-5
    )


@pytest.mark.example
def test_a_file_of_schema_1_is_read_and_names_no_drafter() -> None:
    old = changed("drafter", ...) | {"schema_version": 1}
    model = decode_cost_model(old, where="old.json")
    assert (model.drafter, model.acceptance) == (None, None)
    assert json.loads(json.dumps(as_json(model))) == old


@pytest.mark.law
def test_every_shipped_model_says_whose_drafting_it_prices() -> None:
    """Law: and either whose acceptance is its own, or that there is none."""
    for name in shipped_cost_models():
        model = load_cost_model(name)
        assert model.drafter is not None
        assert model.drafter.note
        assert (model.acceptance is None) == model.drafter.note.startswith("none of its own")
