"""The drafter inside SGLang computes what the reference does, sharded or not, and refuses the rest.

Everything of SGLang's is real: its checkpoint loader, parallel linears, rotary and norm layers,
KV pool, request table and torch attention backend. What must live in a process of its own
(SGLang's parallel groups) runs in forked children, which send tensors back in files.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sglang_dspark.draft.model.checkpoint import save_drafter
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.model import Drafter

pytest.importorskip("sglang")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
VOCABULARY, WIDTH, GAMMA, LAYERS = 67, 24, 5, 6
"""A vocabulary that SGLang pads (to 128), and a target of six layers."""

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {
        "architectures": ["Qwen3DSparkModel"],
        "model_type": "qwen3",
        "head_dim": 8,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    },
    "gemma4": {
        "architectures": ["Gemma4DSparkModel"],
        "model_type": "gemma4_text",
        "head_dim": 6,
        "global_head_dim": 8,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 2.0,
        "hidden_size_per_layer_input": 0,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.5,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
}
DRAFTER = {
    "num_hidden_layers": 2,
    "num_target_layers": LAYERS,
    "layer_types": ["full_attention"] * 2,
    "tie_word_embeddings": False,
    "block_size": GAMMA,
    "mask_token_id": VOCABULARY - 1,
    "target_layer_ids": [-1, 1, 3],
    "num_anchors": 8,
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
    "markov_rank": 6,
    "markov_head_type": "vanilla",
}
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("qwen3", {}, 1),
    ("qwen3", {"markov_head_type": "gated", "attention_bias": True}, 1),
    ("qwen3", {"markov_head_type": "rnn", "target_layer_ids": [3, -1, 1]}, 1),
    ("qwen3", {"markov_rank": 0, "enable_confidence_head": False}, 1),
    ("qwen3", {"confidence_head_with_markov": False, "architectures": ["DSparkDraftModel"]}, 1),
    (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        1,
    ),
    ("gemma4", {}, 1),
    ("gemma4", {"markov_head_type": "gated", "attention_k_eq_v": False}, 1),
    ("gemma4", {"markov_head_type": "rnn", "architectures": ["DSparkDraftModel"]}, 1),
    ("qwen3", {"attention_bias": True}, 2),
    ("gemma4", {"markov_head_type": "rnn"}, 2),
]


# A target and a drafter on disk.


def drafter_json(family: str, **changes: Any) -> dict[str, Any]:
    return {**SHAPE, **FAMILIES[family], **DRAFTER, **changes}


def make_target(folder: Path, family: str) -> Path:
    """A tiny random target, saved by transformers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.models.gemma4 import Gemma4ForCausalLM, Gemma4TextConfig

    keys = {**SHAPE, **FAMILIES[family], "num_hidden_layers": LAYERS}
    torch.manual_seed(1)
    if family == "qwen3":
        kind: Any = Qwen3ForCausalLM
        model = kind(Qwen3Config(**keys))
    else:
        kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
        keys["architectures"] = ["Gemma4ForCausalLM"]
        model = Gemma4ForCausalLM(Gemma4TextConfig(**keys, layer_types=kinds))
    model.save_pretrained(folder)
    return folder


def make_drafter(folder: Path, raw: dict[str, Any], embed: Tensor, lm_head: Tensor) -> Drafter:
    """A random drafter of the target with these ends, saved by the package; its config is ``raw``.

    Norms, biases and scalars are random too: at their initial ones and zeros a swapped or
    forgotten one would go unseen.
    """
    known = {**raw, "architectures": FAMILIES[family_of(raw)]["architectures"]}
    torch.manual_seed(2)
    drafter = Drafter(DrafterConfig.from_dict(known, where="test"), embed, lm_head)
    for name, tensor in drafter.state_dict().items():
        if name not in ("embed_tokens.weight", "lm_head.weight"):
            flat = tensor.dim() == 1
            noise = torch.randn_like(tensor)
            around = float(flat and not name.endswith("bias"))
            tensor.copy_(around + noise * (0.2 if flat else tensor.shape[-1] ** -0.5))
    save_drafter(drafter, folder)
    (folder / "config.json").write_text(json.dumps(raw))
    return drafter.eval()


def family_of(raw: dict[str, Any]) -> str:
    return "qwen3" if raw["model_type"] == "qwen3" else "gemma4"


def ends(target: Path) -> tuple[Tensor, Tensor]:
    """The target's embedding and lm_head weights, from its files."""
    tensors = load_file(target / "model.safetensors")
    embed = next(t for name, t in tensors.items() if name.endswith("embed_tokens.weight"))
    return embed, tensors.get("lm_head.weight", embed)


@dataclass(frozen=True, kw_only=True)
class Pair:
    target: Path
    drafter: Path
    reference: Drafter


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {family: make_target(folder / family, family) for family in FAMILIES}


@pytest.fixture
def pair(targets: dict[str, Path], tmp_path: Path) -> Callable[..., Pair]:
    def build(family: str, **changes: Any) -> Pair:
        target, folder = targets[family], tmp_path / "drafter"
        reference = make_drafter(folder, drafter_json(family, **changes), *ends(target))
        return Pair(target=target, drafter=folder, reference=reference)

    return build


# SGLang's side, in children.


@pytest.fixture(scope="module", autouse=True)
def sglang_imported() -> Iterator[None]:
    """Import SGLang once, in the parent, and initialise nothing there."""
    changed = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    for name in ("sglang.srt.models.registry", "sglang_dspark.runtime.worker.draft_model"):
        importlib.import_module(name)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def in_sglang(
    tmp_path: Path,
    target: Path,
    work: Callable[[Any], Any],
    *,
    ranks: int = 1,
    dtype: str = "float32",
) -> list[Any]:
    """``work(server)`` in ``ranks`` forked processes that form one tensor-parallel group."""
    fork = multiprocessing.get_context("fork")
    children = []
    for rank in range(ranks):
        arguments = (tmp_path, target, work, rank, ranks, dtype)
        children.append(fork.Process(target=_child, args=arguments))
        children[-1].start()
    for child in children:
        child.join(120)
        if child.is_alive():
            child.kill()
    answers = []
    for rank in range(ranks):
        error = tmp_path / f"error{rank}"
        assert not error.exists(), error.read_text()
        answers.append(torch.load(tmp_path / f"answer{rank}", weights_only=False))
    return answers


def _child(tmp_path: Path, target: Path, work: Any, rank: int, ranks: int, dtype: str) -> None:
    try:
        torch.compiler.set_stance("force_eager")  # a compiler would take a minute
        server = Server(target, rank=rank, ranks=ranks, meet=tmp_path / "meet", dtype=dtype)
        answer = work(server)
        torch.save(answer, tmp_path / f"answer{rank}")
    except BaseException:
        (tmp_path / f"error{rank}").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(0)


class Server:
    """One rank of an SGLang server up to where it would make its schedulers: groups and target."""

    def __init__(self, target: Path, *, rank: int, ranks: int, meet: Path, dtype: str) -> None:
        from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
        from sglang.srt.layers.dp_attention import initialize_dp_attention
        from sglang.srt.models.registry import ModelRegistry
        from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

        from sglang_dspark.runtime.worker import draft_model

        ModelRegistry.models |= {kind.__name__: kind for kind in draft_model.EntryClass}
        # SGLang lets no Gemma4 server have the torch backend; the models themselves do not mind.
        plain = target.with_name("qwen3")
        self.arguments = ServerArgs(
            model_path=str(plain),
            device="cpu",
            dtype=dtype,
            attention_backend="torch_native",
            sampling_backend="pytorch",
            grammar_backend="none",
            disable_cuda_graph=True,
            skip_tokenizer_init=True,
            tp_size=ranks,
        )
        set_global_server_args_for_scheduler(self.arguments)
        init_distributed_environment(ranks, rank, f"file://{meet}", rank, "gloo")
        initialize_model_parallel(ranks)
        self.ranks = ranks
        target_config = self.config(target)
        if target != plain:
            # What SGLang's parser does for a whole Gemma4, of which this is the text part.
            text = target_config.hf_text_config
            text.swa_head_dim, text.head_dim = text.head_dim, text.global_head_dim
            text.swa_num_key_value_heads = text.num_key_value_heads
            text.num_key_value_heads = text.num_global_key_value_heads
        initialize_dp_attention(self.arguments, target_config)
        self.target = self.load(target_config)

    def config(self, folder: Path, *, draft: bool = False) -> Any:
        from sglang.srt.configs.model_config import ModelConfig

        return ModelConfig.from_server_args(
            self.arguments, model_path=str(folder), is_draft_model=draft
        )

    def load(self, config: Any, *, kind: str = "auto") -> Any:
        from sglang.srt.configs.device_config import DeviceConfig
        from sglang.srt.configs.load_config import LoadConfig
        from sglang.srt.model_loader import get_model

        return get_model(
            model_config=config,
            load_config=LoadConfig(load_format=kind),
            device_config=DeviceConfig("cpu"),
        )


class Context:
    """The drafter's KV pool and request table, with context written for some requests."""

    def __init__(self, server: Server, model: Any, config: Any, lengths: list[int]) -> None:
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

        model.fit_pool(config)
        # A pool with too many heads would be filled by broadcasting, unseen.
        assert config.get_num_kv_heads(server.ranks) == model.layers[0].self_attn.attn.tp_k_head_num
        self.device = "cpu"
        self.token_to_kv_pool = MHATokenToKVPool(
            size=200,
            page_size=1,
            dtype=config.dtype,
            head_num=config.get_num_kv_heads(server.ranks),
            head_dim=config.head_dim,
            layer_num=config.num_hidden_layers,
            device="cpu",
            enable_memory_saver=False,
        )
        self.req_to_token_pool = ReqToTokenPool(len(lengths), 128, "cpu", False)
        self.backend = TorchNativeAttnBackend(self)
        self.lengths, self.model = lengths, model
        # Every request's tokens lie scattered over the pool, as after a while of serving.
        scattered = 1 + torch.randperm(199, generator=torch.Generator().manual_seed(3))
        self.rows = torch.arange(len(lengths)) + 1
        start = 0
        for row, length in zip(self.rows, lengths, strict=True):
            count = length + GAMMA
            places = scattered[start : start + count]
            self.req_to_token_pool.write((row, slice(0, count)), places.to(torch.int32))
            start += count

    def write(self, captured: list[Tensor], *, first: list[int], last: list[int]) -> None:
        """Context tokens ``first[i] .. last[i]`` of every request, in one call."""
        table = self.req_to_token_pool.req_to_token
        spans = list(zip(self.rows, captured, first, last, strict=True))
        self.model.write_context(
            self.token_to_kv_pool,
            locations_T=torch.cat([table[row, a:b] for row, _, a, b in spans]).long(),
            positions_T=torch.cat([torch.arange(a, b) for _, _, a, b in spans]),
            context_TD=self.model.context(torch.cat([states[a:b] for _, states, a, b in spans])),
        )

    def draft(self, anchors: list[int]) -> Tensor:
        """Final-normed states [R, K, D] of one block a request."""
        from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
        from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

        prefix = torch.tensor(self.lengths)
        tokens = torch.full((len(anchors), GAMMA), self.model.mask_token_id)
        tokens[:, 0] = torch.tensor(anchors)
        positions = prefix[:, None] + torch.arange(GAMMA)
        batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=len(anchors),
            input_ids=tokens.flatten(),
            req_pool_indices=self.rows,
            seq_lens=prefix + GAMMA,
            out_cache_loc=self.req_to_token_pool.req_to_token[self.rows[:, None], positions]
            .flatten()
            .long(),
            seq_lens_sum=int(prefix.sum()) + GAMMA * len(anchors),
            positions=positions.flatten(),
            extend_prefix_lens=prefix,
            extend_seq_lens=torch.full_like(prefix, GAMMA),
        )
        with forward_context(ForwardContext(attn_backend=self.backend)):
            out = self.model(batch.input_ids, batch.positions, batch)
        assert out.next_token_logits is None
        hidden: Tensor = out.hidden_states
        return hidden.view(len(anchors), GAMMA, -1)


REQUESTS = [9, 1, 30, 17]
"""Context lengths."""
ANCHORS = [3, 0, 66, 12]


def states(layers: list[int], *, seed: int = 4) -> list[Tensor]:
    """Captured states [S, C] of every request, in the order of ``layers``; a layer's own are the
    same in any order."""
    random = torch.Generator().manual_seed(seed)
    drawn = [
        {layer: torch.randn(length, WIDTH, generator=random) for layer in sorted(layers)}
        for length in REQUESTS
    ]
    return [torch.cat([by_layer[layer] for layer in layers], dim=-1) for by_layer in drawn]


def drafted(server: Server, folder: Path) -> dict[str, Tensor]:
    """All that a round reads from SGLang's model."""
    config = server.config(folder, draft=True)
    model = server.load(config)
    model.share(server.target)
    context = Context(server, model, config, REQUESTS)
    captured = states(list(model.layers_captured))
    half = [length // 2 for length in REQUESTS]
    context.write(captured, first=[0] * len(half), last=half)
    context.write(captured, first=half, last=REQUESTS)
    hidden = context.draft(ANCHORS)
    # Slots of an earlier round do not show in a later one: they are overwritten or beyond it.
    again = context.draft(ANCHORS)
    logits = model.base_logits(hidden.flatten(0, 1))
    found = {"hidden": hidden, "again": again, "logits": logits.view(*hidden.shape[:2], -1)}
    found["embedded"] = model.embed(torch.tensor([[0, 5], [66, 1]]))
    attention = model.layers[0].self_attn
    assert attention.q_size == 4 * 8 // server.ranks
    # A table that SGLang lengthens goes on as it began.
    attention.rotary_emb._ensure_cos_sin_cache_length(300)
    found["angles"] = attention.rotary_emb.cos_sin_cache[[7, 300]]
    previous = previous_tokens()
    if model.markov_head is not None:
        latent, embedding = model.markov_head.latent(hidden_NKD=hidden, previous_NK=previous)
        found["bias"] = model.markov_head.markov_w2(latent)
        if model.confidence_head is not None:
            found["confidence"] = model.confidence_head(hidden=hidden, embedding=embedding)
    return found


def previous_tokens() -> Tensor:
    return torch.arange(len(ANCHORS) * GAMMA).reshape(-1, GAMMA) % VOCABULARY


def expected(reference: Drafter) -> dict[str, Tensor]:
    """The same from the reference, one request at a time, over uncached context."""
    layers = list(reference.config.layers_captured)
    hidden = torch.cat(
        [
            reference.hidden(
                context_BSD=reference.context(captured_BSC=captured[None]),
                anchor_tokens_BA=torch.tensor([[anchor]]),
                anchor_index_BA=torch.tensor([[len(captured)]]),
            )[0]
            for captured, anchor in zip(states(layers), ANCHORS, strict=True)
        ]
    )
    found = {"hidden": hidden, "again": hidden, "logits": reference.base_logits(hidden)}
    found["embedded"] = reference.embed(torch.tensor([[0, 5], [66, 1]]))
    cos, sin = reference.rope(torch.tensor([7, 300]), torch.float32)
    found["angles"] = torch.cat([cos[:, :4], sin[:, :4]], dim=-1)
    previous = previous_tokens()
    latent, weight, confidence = reference.latent(hidden_NKD=hidden, previous_NK=previous)
    if latent is not None and weight is not None:
        found["bias"] = latent @ weight.T
        if confidence is not None:
            found["confidence"] = confidence
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.mark.law
@pytest.mark.parametrize(("family", "changes", "ranks"), CASES)
def test_sglang_s_drafter_computes_what_the_reference_does(
    family: str,
    changes: dict[str, Any],
    ranks: int,
    pair: Callable[..., Pair],
    tmp_path: Path,
) -> None:
    made = pair(family, **changes)
    wanted = expected(made.reference)

    def work(server: Server) -> dict[str, Tensor]:
        return drafted(server, made.drafter)

    for found in in_sglang(tmp_path, made.target, work, ranks=ranks):
        assert found.keys() == wanted.keys()
        assert found["logits"].shape[-1] == VOCABULARY
        assert found["logits"].is_contiguous()
        assert found["logits"].dtype == torch.float32
        for name, tensor in wanted.items():
            assert (found[name] - tensor).abs().max() < TOLERANCE, name


@pytest.mark.example
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_only_rounding_differs(
    family: str, pair: Callable[..., Pair], tmp_path: Path
) -> None:
    made = pair(family, markov_head_type="gated")
    wanted = expected(made.reference)

    def work(server: Server) -> dict[str, Tensor]:
        return drafted(server, made.drafter)

    found = in_sglang(tmp_path, made.target, work, dtype="bfloat16")[0]
    assert found["hidden"].dtype == torch.bfloat16
    assert found["logits"].dtype == found["confidence"].dtype == torch.float32
    for name, tensor in wanted.items():
        error = (found[name].float() - tensor).square().mean().sqrt()
        assert error < 0.05 * tensor.square().mean().sqrt(), name


@pytest.mark.law
def test_base_logits_are_the_target_s_own(pair: Callable[..., Pair], tmp_path: Path) -> None:
    made = pair("gemma4")
    hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))

    def work(server: Server) -> tuple[Tensor, Tensor]:
        from sglang.srt.layers.logits_processor import LogitsMetadata
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        model = server.load(server.config(made.drafter, draft=True))
        model.share(server.target)
        whole = server.target.logits_processor._get_logits(
            hidden, server.target.lm_head, LogitsMetadata(forward_mode=ForwardMode.DECODE)
        )
        return model.base_logits(hidden), whole[:, :VOCABULARY]

    # SGLang's softcap is a Triton kernel, so it is taken off here and put on by hand.
    def capless(server: Server) -> tuple[Tensor, Tensor]:
        cap = server.target.logits_processor.final_logit_softcapping
        server.target.logits_processor.final_logit_softcapping = None
        mine, whole = work(server)
        return mine, torch.tanh(whole / cap) * cap

    mine, whole = in_sglang(tmp_path, made.target, capless)[0]
    assert (mine - whole).abs().max() < TOLERANCE


@pytest.mark.example
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_gives_a_drafter_of_random_weights_to_time(
    family: str, pair: Callable[..., Pair], tmp_path: Path
) -> None:
    made = pair(family)
    (made.drafter / "model.safetensors").unlink()

    def work(server: Server) -> Tensor:
        config = server.config(made.drafter, draft=True)
        model = server.load(config, kind="dummy")
        model.share(server.target)
        return Context(server, model, config, REQUESTS).draft(ANCHORS)

    assert bool(in_sglang(tmp_path, made.target, work)[0].isfinite().all())


# Refusals.


def messages(server: Server, folder: Path) -> dict[str, str]:
    """What a model refuses, by what was done to it."""
    config = server.config(folder, draft=True)
    good = load_file(folder / "model.safetensors")
    model = server.load(config)
    told = {}

    def told_by(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
            told[name] = "nothing"
        except ValueError as error:
            told[name] = str(error)

    def loading(**changes: Tensor | None) -> Callable[[], None]:
        names = {key.replace("__", "."): tensor for key, tensor in changes.items()}
        tensors = {key: tensor for key, tensor in {**good, **names}.items() if tensor is not None}
        return lambda: model.load_weights(iter(tensors.items()))

    told_by("unshared", lambda: model.embed(torch.tensor([1])))
    told_by("whole", loading())
    told_by("shared left out", loading(embed_tokens__weight=None, lm_head__weight=None))
    told_by("missing", loading(fc__weight=None))
    told_by("missing layer", loading(layers__1__self_attn__k_proj__weight=None))
    told_by("unknown", loading(layers__2__mlp__up_proj__weight=torch.zeros(3)))
    told_by("misshaped", loading(layers__0__self_attn__v_proj__weight=torch.zeros(8, WIDTH)))
    told_by("misshaped copy", loading(embed_tokens__weight=torch.zeros(VOCABULARY + 1, WIDTH)))
    told_by("quantised", loading(norm__weight=torch.zeros(WIDTH, dtype=torch.int8)))
    told_by("not finite", loading(norm__weight=torch.full((WIDTH,), torch.nan)))
    told_by("captured", lambda: model.context(torch.zeros(2, WIDTH)))
    target = server.target
    told_by("right target", lambda: model.share(target))
    lm_head, target.lm_head = target.lm_head, target.model.norm
    told_by("no lm_head", lambda: model.share(target))
    target.lm_head = lm_head
    embedding = target.model.embed_tokens
    embedding.org_vocab_size = VOCABULARY + 1
    told_by("other vocabulary", lambda: model.share(target))
    embedding.org_vocab_size = VOCABULARY
    lm_head.embedding_dim = WIDTH * 2
    told_by("other width", lambda: model.share(target))
    lm_head.embedding_dim = WIDTH
    target.config.num_hidden_layers = LAYERS + 1
    told_by("other depth", lambda: model.share(target))
    target.config.num_hidden_layers = LAYERS
    target.config.final_logit_softcapping = 30.0
    told_by("other softcap", lambda: model.share(target))
    told_by("no target", lambda: model.share(target.model.norm))
    return told


@pytest.mark.example
def test_defects_of_tensors_and_targets_are_refused_by_name(
    pair: Callable[..., Pair], tmp_path: Path
) -> None:
    made = pair("qwen3")

    def work(server: Server) -> dict[str, str]:
        return messages(server, made.drafter)

    told = in_sglang(tmp_path, made.target, work)[0]
    assert {name for name, text in told.items() if text == "nothing"} == {
        "whole",
        "shared left out",
        "right target",
    }
    for name, part in {
        "unshared": "share the target's first",
        "missing": "'fc.weight' is missing (1 in all)",
        "missing layer": "'layers.1.self_attn.k_proj.weight' is missing",
        "unknown": "'layers.2.mlp.up_proj.weight' is unexpected",
        "misshaped": "'layers.0.self_attn.v_proj.weight' has shape [8, 24], config.json asks for "
        "[16, 24]",
        "misshaped copy": "'embed_tokens.weight' has shape [68, 24]",
        "quantised": "'norm.weight' is torch.int8",
        "not finite": "'norm.weight' has NaN",
        "captured": "24 wide, the drafter wants 72; have the target capture layers (-1, 1, 3)",
        "no lm_head": "has no lm_head to share",
        "other vocabulary": "embedding is (68, 24), the drafter wants (67, 24)",
        "other width": "lm_head is (67, 48)",
        "other depth": "num_hidden_layers is 7, the drafter was made for 6",
        "other softcap": "final_logit_softcapping is 30.0, the drafter was made for None",
        "no target": "RMSNorm does not lend its embedding and logits",
    }.items():
        assert part in told[name], name


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"target_layer_ids": [1, 5]}, "captures the target's last layer 5"),
        ({"mask_token_id": VOCABULARY}, "mask_token_id 67 is outside the vocabulary"),
        ({"markov_head_type": "linear"}, "markov_head_type 'linear' is unknown"),
        ({"block_size": 0}, "block_size is 0"),
        ({"sample_from_anchor": False}, "sample_from_anchor is false"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM is a target without a drafter"),
        (
            {"architectures": ["DSparkDraftModel"], "model_type": "llama"},
            "DSparkDraftModel of model_type 'llama' is unknown; known: qwen3, gemma4_text",
        ),
        (
            {
                "architectures": ["Qwen3Eagle3Model"],
                "num_hidden_layers": 1,
                "layer_types": ["full_attention"],
                "markov_rank": 0,
                "enable_confidence_head": False,
            },
            "Qwen3Eagle3Model drafts token by token",
        ),
    ],
)
def test_malformed_configs_are_refused_with_their_reason(
    changes: dict[str, Any], part: str
) -> None:
    from sglang_dspark.runtime.worker.draft_model import drafter_config

    with pytest.raises(ValueError, match=r"^drafter ") as caught:
        drafter_config(Parsed(drafter_json("qwen3", **changes)))
    assert part in str(caught.value)


@pytest.mark.example
def test_keys_may_lie_in_dflash_config_and_training_s_may_be_missing() -> None:
    from sglang_dspark.runtime.worker.draft_model import drafter_config

    flat = drafter_json("qwen3")
    nested = {key: flat.pop(key) for key in ("target_layer_ids", "mask_token_id")}
    del flat["num_anchors"]
    parsed = drafter_config(Parsed({**flat, "dflash_config": nested}))
    assert parsed.layers_captured == (-1, 1, 3)
    assert parsed.mask_token_id == VOCABULARY - 1


@pytest.mark.example
@pytest.mark.parametrize(
    ("ranks", "part"),
    [
        (3, "num_attention_heads 4 does not split over 3"),
        (16, "num_attention_heads 4 does not split over 16"),
        (4, None),
    ],
)
def test_shards_must_be_even(ranks: int, part: str | None) -> None:
    from sglang_dspark.runtime.worker.draft_layers import check_shards

    config = DrafterConfig.from_dict(drafter_json("qwen3"), where="test")
    if part is None:
        check_shards(config, ranks)
        return
    with pytest.raises(ValueError, match=part):
        check_shards(config, ranks)


class Parsed:
    """A config as transformers hands it to SGLang, as far as it is read."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def to_dict(self) -> dict[str, Any]:
        return dict(self.value)
