"""The bundled layout: what goes in comes out, byte for byte, and every defect is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from sglang_dspark.draft.model.checkpoint import load_drafter, save_drafter
from sglang_dspark.draft.model.deepseek_v4.checkpoint import save_bundle
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter
from sglang_dspark.draft.model.target import Target
from tests.draft import independent_v4 as plain
from tests.draft import tiny_v4

Files = tuple[dict[str, Any], plain.Weights]


def loaded(folder: Path, **choices: Any) -> BundledDrafter:
    drafter = load_drafter(folder, **choices)
    assert isinstance(drafter, BundledDrafter)
    return drafter


def small(**changes: Any) -> Files:
    config = plain.bundled_config(n_routed_experts=2, num_experts_per_tok=1, **changes)
    return config, plain.random_weights(config)


def renamed(weights: plain.Weights) -> plain.Weights:
    """The other convention: heads on the first stage, their names short, ends as transformers'."""
    words = {
        "mtp.2.markov_head.markov_w1": "mtp.0.markov_head.embed",
        "mtp.2.markov_head.markov_w2": "mtp.0.markov_head.head",
        "mtp.2.confidence_head": "mtp.0.confidence_head",
        "embed.weight": "model.embed_tokens.weight",
    }
    out = {}
    for name, tensor in weights.items():
        for old, new in words.items():
            if name.startswith(old):
                name = name.replace(old, new)
        out[name] = tensor
    return out


@pytest.mark.law
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_and_saving_gives_the_same_bytes(
    other: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    config, weights = small(dspark_n_routed_experts=None)
    weights = {
        name: tensor.to(dtype) if tensor.ndim == 2 and tensor.is_floating_point() else tensor
        for name, tensor in (renamed(weights) if other else weights).items()
    }
    source = plain.write(tmp_path / "a", config, weights)
    save_drafter(loaded(source), tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.law
def test_without_the_ends_the_target_lends_them(tmp_path: Path) -> None:
    config, weights = small()
    source = plain.write(tmp_path / "a", config, weights)
    save_drafter(loaded(source), tmp_path / "b", include_shared=False)
    with safe_open(tmp_path / "b" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("mtp.") for name in file.keys())  # noqa: SIM118
    with pytest.raises(ValueError, match=r"'embed.weight' is missing; give the target"):
        load_drafter(tmp_path / "b")


def tiny_target(folder: Path, *, sharded: bool = False) -> Path:
    torch.manual_seed(0)
    text = tiny_v4.target_config(67, hidden_size=24, moe_intermediate_size=20, hc_mult=3)
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**text))
    tiny_v4.draw_tables(model)
    model.save_pretrained(folder, max_shard_size="40KB" if sharded else "5GB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.law
@pytest.mark.parametrize("sharded", [False, True])
def test_a_bundle_is_the_target_and_the_drafter(sharded: bool, tmp_path: Path) -> None:
    folder = tiny_target(tmp_path / "target", sharded=sharded)
    theirs = json.loads((folder / "config.json").read_text())
    keys = {k: v for k, v in small()[0].items() if k.startswith("dspark_")}
    config = {**theirs, **keys, "dspark_target_layer_ids": [1, 4]}
    weights = plain.random_weights({**config, "qk_rope_head_dim": 8})
    mine = {name: t for name, t in weights.items() if name.startswith("mtp.")}
    alone = plain.write(tmp_path / "alone", config, mine)
    target = Target.from_pretrained(folder)
    drafter = loaded(alone, target=target)
    save_bundle(drafter, folder, tmp_path / "bundle")
    again = loaded(tmp_path / "bundle")
    assert again.config == drafter.config
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    tokens = torch.arange(12)[None]
    wanted, _ = target.prefill(tokens_BS=tokens)
    both = Target.from_pretrained(tmp_path / "bundle")
    assert torch.equal(both.prefill(tokens_BS=tokens)[0], wanted)
    assert (tmp_path / "bundle" / "tokenizer.json").read_text() == "{}"
    # Bundled again, into a bundle's place: the old drafter is gone, the bytes are the same.
    save_bundle(again, tmp_path / "bundle", tmp_path / "twice")
    names = sorted(file.name for file in (tmp_path / "bundle").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "twice").iterdir())
    for name in names:
        first, second = ((tmp_path / f / name).read_bytes() for f in ("bundle", "twice"))
        assert first == second, name
    with pytest.raises(ValueError, match="is the target itself"):
        save_bundle(drafter, folder, folder)
    (folder / "config.json").write_text(
        json.dumps({**theirs, "quantization_config": {"quant_method": "fp8"}})
    )
    with pytest.raises(ValueError, match=r"is quantised \(fp8\)"):
        save_bundle(drafter, folder, tmp_path / "never")
    assert not (tmp_path / "never").exists()


# What is refused.


def keys(**changes: Any) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        config = {**files[0], **changes}
        return {k: v for k, v in config.items() if v is not ...}, files[1]

    return change


def tensors(**changes: Any) -> Callable[[Files], Files]:
    """Tensors by name with dots as double underscores; a callable changes, ``...`` removes."""

    def change(files: Files) -> Files:
        weights = dict(files[1])
        for name, new in changes.items():
            name = name.replace("__", ".")
            old = weights.get(name)
            weights[name] = new(old) if callable(new) else new
        return files[0], {name: t for name, t in weights.items() if t is not ...}

    return change


def moved(old: str, new: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        return files[0], {n.replace(old, new): t for n, t in files[1].items()}

    return change


def both(*changes: Callable[[Files], Files]) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        for one in changes:
            files = one(files)
        return files

    return change


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


def fp8(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float8_e4m3fn)


WQ = "mtp__1__attn__wq_a"
EXPERT = "mtp__0__ffn__experts__1__w2"
TABLE = torch.zeros(67, 1, dtype=torch.int64)
REFUSED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no block size": (keys(dspark_block_size=...), "dspark_block_size is missing"),
    "no mask token": (keys(dspark_noise_token_id=...), "dspark_noise_token_id is missing"),
    "no layers": (keys(dspark_target_layer_ids=...), "dspark_target_layer_ids is missing"),
    "null rank": (keys(dspark_markov_rank=None), "dspark_markov_rank is missing"),
    "unknown key": (keys(dspark_gamma=5), "dspark_gamma is not known"),
    "a word for a number": (keys(dspark_block_size="five"), "Expected `int`, got `str`"),
    "empty block": (keys(dspark_block_size=0), "dspark_block_size is 0; it must be at least 1"),
    "mask beyond": (keys(dspark_noise_token_id=67), "67 is outside the vocabulary of 67"),
    "layer beyond": (keys(dspark_target_layer_ids=[2, 4, 6]), "layer 6 does not exist"),
    "layer below": (keys(dspark_target_layer_ids=[-1, 4, 5]), "layer -1 does not exist"),
    "layer twice": (keys(dspark_target_layer_ids=[4, 4, 5]), "must be distinct"),
    "stages": (keys(dspark_target_layer_ids=[4, 5]), r"has stages \[0, 1, 2\], but"),
    "another convention": (keys(sample_from_anchor=False), "every prediction is shifted by one"),
    "gated head": (keys(dspark_markov_head_type="gated"), "Markov head is vanilla"),
    "negative rank": (keys(dspark_markov_rank=-1), "is -1; use 0 for no head"),
    "confident of nothing": (
        keys(dspark_markov_rank=0, confidence_head_with_markov=True),
        "needs a Markov head",
    ),
    "V4.1": (keys(model_type="deepseek_v41"), "is DeepSeek-V4.1 .*not supported"),
    "V4.1's streams": (keys(hc_pre_from_prev_sublayer=True), "is DeepSeek-V4.1 .streams collapsed"),
    "another target": (keys(model_type="qwen3"), "is no deepseek_v4 checkpoint"),
    "compressed stage": (
        keys(compress_ratios=[0, 4, 128, 4, 128, 4, 0, 4, 0]),
        r"ends in \[0, 4, 0\] beyond the target's layers",
    ),
    "more active experts": (keys(dspark_num_experts_per_tok=3), "3 active of 2 routed experts"),
    "no window": (keys(sliding_window=...), "sliding_window is None; the target's config must"),
    "groups": (keys(o_groups=3), "is no multiple of o_groups 3"),
    "other experts": (keys(dspark_n_routed_experts=3), r"experts.2.w1.weight' is missing"),
    "fewer experts": (
        keys(dspark_n_routed_experts=1, num_experts_per_tok=1),
        r"'mtp.0.ffn.experts.1.w1.weight' is unexpected|has shape",
    ),
    "other rank": (keys(dspark_markov_rank=7), r"markov_w1.weight' has shape \[67, 6\]"),
    "other streams": (keys(hc_mult=4), r"hc_attn_fn' has shape \[15, 72\]"),
    "no drafter": (
        lambda files: (files[0], {n: t for n, t in files[1].items() if "mtp" not in n}),
        "no mtp.* tensors",
    ),
    "a stage is missing": (moved("mtp.1.", "layers.9."), r"has stages \[0, 2\]"),
    "no number": (moved("mtp.1.", "mtp.one."), "names no stage"),
    "main_proj elsewhere": (
        moved("mtp.0.main_proj", "mtp.1.main_proj"),
        "'mtp.0.main_proj.weight' is missing",
    ),
    "heads on two stages": (
        moved("mtp.2.confidence_head", "mtp.1.confidence_head"),
        r"heads are on stages \[1, 2\]",
    ),
    "two names of a head": (
        moved("markov_head.markov_w1", "markov_head.embed"),
        "names of both conventions",
    ),
    "no confidence": (
        tensors(mtp__2__confidence_head__proj__weight=...),
        "confidence_head.proj.weight' is missing",
    ),
    "a bias": (
        tensors(mtp__2__confidence_head__proj__bias=torch.zeros(1)),
        "'mtp.2.confidence_head.proj.bias' is unexpected",
    ),
    "newer router": (
        tensors(mtp__1__ffn__gate__bias_vl=torch.zeros(2)),
        "'mtp.1.ffn.gate.bias_vl' is unexpected",
    ),
    "nan": (tensors(**{f"{WQ}__weight": nan}), "has NaN or infinite weights"),
    "whole numbers": (
        tensors(mtp__0__attn_norm__weight=torch.ones(24, dtype=torch.int32)),
        "is torch.int32; weights are floating-point",
    ),
    "no scale": (tensors(**{f"{WQ}__weight": fp8}), "is torch.float8_e4m3fn without a .scale"),
    "scale of what": (
        tensors(**{f"{WQ}__scale": torch.ones(1, 1)}),
        "is torch.float32 and has a .scale",
    ),
    "scale's shape": (
        tensors(**{f"{WQ}__weight": fp8, f"{WQ}__scale": torch.ones(2, 1)}),
        r"scale has shape \[2, 1\], blocks of 128 x 128 ask for \[1, 1\]",
    ),
    "scale below 0": (
        tensors(**{f"{WQ}__weight": fp8, f"{WQ}__scale": -torch.ones(1, 1)}),
        "scale is not finite and above 0",
    ),
    "fp4 of half the width": (
        tensors(
            **{
                f"{EXPERT}__weight": torch.zeros(24, 5, dtype=torch.int8),
                f"{EXPERT}__scale": torch.ones(24, 1),
            }
        ),
        r"has shape \[24, 10\]",
    ),
    "one expert quantised": (
        both(
            tensors(**{f"{EXPERT}__weight": fp8, f"{EXPERT}__scale": nan(torch.ones(1, 1))}),
        ),
        "scale is not finite",
    ),
    "two routers": (
        tensors(mtp__0__ffn__gate__tid2eid=TABLE),
        "'mtp.0.ffn.gate.bias' is unexpected",
    ),
    "an expert beyond": (
        tensors(mtp__0__ffn__gate__tid2eid=TABLE + 2, mtp__0__ffn__gate__bias=...),
        "routes to expert 2 of 2",
    ),
    "a table of halves": (
        tensors(mtp__0__ffn__gate__tid2eid=TABLE.float(), mtp__0__ffn__gate__bias=...),
        "experts are whole numbers",
    ),
}


@pytest.mark.law
@pytest.mark.parametrize("name", REFUSED)
def test_a_defect_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    change, reason = REFUSED[name]
    config, weights = change(small())
    folder = plain.write(tmp_path / "c", config, weights)
    with pytest.raises(ValueError, match=reason) as refusal:
        load_drafter(folder)
    said = str(refusal.value)
    assert str(folder) in said
    assert "\n" not in said


@pytest.mark.law
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    config, weights = small()
    folder = plain.write(tmp_path / "c", config, weights)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_drafter(folder)
    file.rename(folder / "model-00001.safetensors")
    index = dict.fromkeys(weights, "model-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match=r"model-00002.safetensors: no such file"):
        load_drafter(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="no weight_map"):
        load_drafter(folder)


@pytest.mark.law
def test_a_drafter_of_another_target_is_refused(tmp_path: Path) -> None:
    target = Target.from_pretrained(tiny_target(tmp_path / "target"))
    folder = plain.write(tmp_path / "c", *small())
    with pytest.raises(ValueError, match="num_target_layers is 6 but the target has 5"):
        load_drafter(folder, target=target)


@pytest.mark.law
def test_matrices_of_unlike_dtypes_get_the_widest(tmp_path: Path) -> None:
    config, weights = small()
    half = {n: t.bfloat16() if ".attn.w" in n else t for n, t in weights.items()}
    drafter = loaded(plain.write(tmp_path / "c", config, half))
    state = drafter.state_dict()
    assert state["layers.0.self_attn.q_a_proj.weight"].dtype == torch.float32
    save_file(load_file(tmp_path / "c" / "model.safetensors"), tmp_path / "x.safetensors")
    narrow = loaded(tmp_path / "c", dtype=torch.bfloat16)
    kinds = {n: t.dtype for n, t in narrow.state_dict().items()}
    assert kinds["layers.0.mlp.experts.down_proj"] == torch.bfloat16
    assert kinds["layers.0.attn_hc.fn"] == kinds["layers.0.self_attn.sinks"] == torch.float32
