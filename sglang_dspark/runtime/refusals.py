"""What DSPARK does not serve: refused at the start, or per request with HTTP 400, by one sentence.

Owns the lists. A request that only might be answered wrongly is refused too: what is not on these
lists is served and verified. Knows nothing of how a step works.
"""

from __future__ import annotations

from typing import Any

from sglang_dspark.draft.model.config import DrafterConfig

ALGORITHM = "DSPARK"

SERVER_FLAGS: tuple[tuple[str, object, str, str], ...] = (
    ("enable_lora", None, "LoRA", "merge the adapter into the target"),
    ("lora_paths", None, "LoRA", "merge the adapter into the target"),
    ("enable_dp_attention", False, "data-parallel attention", "leave it out"),
    ("pp_size", 1, "pipeline parallelism", "use --tp-size"),
    ("attn_cp_size", 1, "context parallelism", "leave it out"),
    ("dcp_size", 1, "context parallelism", "leave it out"),
    ("enable_prefill_cp", False, "context parallelism", "leave it out"),
    ("disaggregation_mode", "null", "prefill-decode disaggregation", "serve both in one server"),
    ("encoder_only", False, "a separate encoder", "serve text in one server"),
    ("language_only", False, "a separate encoder", "serve text in one server"),
    ("enable_two_batch_overlap", False, "two-batch overlap", "leave it out"),
    ("enable_pdmux", False, "prefill-decode multiplexing", "leave it out"),
    ("is_embedding", False, "an embedding server", "serve it without speculation"),
    ("dllm_algorithm", None, "a diffusion language model", "serve it without speculation"),
    ("decoupled_spec_role", "null", "decoupled speculation", "leave it out"),
    ("speculative_adaptive", False, "SGLang's adaptive speculation", "set a DSPARK policy"),
    ("enable_multi_layer_eagle", False, "multi-layer EAGLE", "leave it out"),
    ("enable_hierarchical_cache", False, "the hierarchical cache", "leave it out"),
    ("enable_lmcache", False, "LMCache", "leave it out"),
    ("enable_hisparse", False, "HiSparse", "leave it out"),
    ("enable_streaming_session", False, "streaming sessions", "leave it out"),
    ("enable_session_radix_cache", False, "the session radix cache", "leave it out"),
    ("enable_memory_saver", False, "giving memory back at run time", "leave it out"),
    ("checkpoint_engine_wait_weights_before_ready", False, "late weights", "load them at start"),
    ("tokenizer_worker_num", 1, "several tokenizer processes", "leave it out"),
    ("grpc_mode", False, "the gRPC server", "serve HTTP"),
    ("rl_on_policy_target", None, "on-policy reinforcement learning", "leave it out"),
    ("use_ray", False, "Ray actors", "start it as plain processes"),
)
"""Attribute of the server's arguments, the value that is served, what any other is, the remedy."""

REQUEST_FIELDS = (
    ("custom_logit_processor", "a custom logit processor", "use logit_bias or a grammar"),
    ("return_hidden_states", "hidden states in the answer", "leave out return_hidden_states"),
    ("return_routed_experts", "routed experts in the answer", "leave out return_routed_experts"),
    ("return_indexer_topk", "indexer choices in the answer", "leave out return_indexer_topk"),
    ("lora_path", "a LoRA adapter", "merge it into the target"),
    ("image_data", "images", "send text"),
    ("video_data", "video", "send text"),
    ("audio_data", "audio", "send text"),
    ("input_embeds", "input embeddings", "send text or input_ids"),
    ("positional_embed_overrides", "embedding overrides", "send text or input_ids"),
)
"""Attribute of a request, what a set one asks for, the remedy."""

WEIGHT_UPDATES = {
    "update_weights_from_disk": (0,),
    "update_weights_from_distributed": (),
    "update_weights_from_tensor": (),
    "update_weights_from_ipc": (),
    "init_weights_update_group": (),
}
"""Methods of the tokenizer manager, and what each answers after success and message."""

WEIGHTS_STAY = (
    "DSPARK: weights are not updated in a running server, since its drafter was trained for the "
    "ones it has; restart with the new target and its drafter"
)


def asks(server_args: Any) -> bool:
    """Whether these server arguments ask for DSPARK."""
    return str(getattr(server_args, "speculative_algorithm", "")).upper() == ALGORITHM


def _flag(attribute: str) -> str:
    return "--" + attribute.replace("_", "-")


def check_server_args(server_args: Any) -> None:
    """``ValueError`` for the first server argument that DSPARK does not serve with."""
    for attribute, served, what, remedy in SERVER_FLAGS:
        value = getattr(server_args, attribute, served)
        if value != served and value:
            shown = "" if value is True else f" {value}"
            raise ValueError(
                f"{_flag(attribute)}{shown}: DSPARK does not serve with {what}; {remedy}, or drop "
                "--speculative-algorithm"
            )
    if getattr(server_args, "grammar_backend", None) == "outlines":
        raise ValueError(
            "--grammar-backend outlines: DSPARK takes rejected tokens back, which outlines cannot; "
            "use xgrammar or llguidance"
        )


def check_target(model_config: Any) -> None:
    """``ValueError`` for a target whose state ragged verification would spoil.

    ``model_config`` is SGLang's. Recurrent layers advance by whole steps and cannot take back the
    tokens that were rejected; two KV pools of unlike size have no place for the drafter's.
    """
    name = " ".join(model_config.hf_config.architectures or ["the target"])
    if not model_config.is_generation:
        what, remedy = "generates no text", "serve it without speculation"
    elif model_config.is_encoder_decoder:
        what, remedy = "is an encoder-decoder", "serve it without speculation"
    elif any(
        hasattr(type(config), "mamba2_cache_params")
        for config in (model_config.hf_config, model_config.hf_text_config)
    ):
        what, remedy = "has linear-attention or SSM layers", "serve it without speculation"
    elif model_config.is_hybrid_swa:
        what, remedy = "keeps two KV pools", "add --disable-hybrid-swa-memory"
    else:
        return
    raise ValueError(f"target {name} {what}, which DSPARK does not serve; {remedy}")


def check_drafter(drafter: DrafterConfig, text_config: Any) -> None:
    """``ValueError`` when the drafter was made for another target than ``text_config`` describes.

    Equal shapes do not prove that it is the right one; a stranger of equal shape drafts badly and
    changes no output.
    """
    for key, have in (
        ("hidden_size", drafter.hidden_size),
        ("vocab_size", drafter.vocab_size),
        ("num_hidden_layers", drafter.num_target_layers),
    ):
        want = getattr(text_config, key, have)
        if want != have:
            raise ValueError(
                f"the drafter was made for a target with {key} {have}, this one has {want}; give "
                "--speculative-draft-model-path the drafter of this target"
            )


def check_request(request: Any) -> None:
    """``ValueError``, which SGLang answers with HTTP 400, for a request that DSPARK cannot serve.

    ``request`` is one of a batch: SGLang's own, after it was split.
    """
    for attribute, what, remedy in REQUEST_FIELDS:
        if _is_set(getattr(request, attribute, None)):
            raise ValueError(f"DSPARK does not serve {what}; {remedy}")


def check_seeded(request: Any) -> None:
    """``ValueError`` for min-p in a server of seeded requests: SGLang's seeded sampler has none."""
    params = request.sampling_params
    for one in params if isinstance(params, list) else [params]:
        min_p = one.get("min_p") if isinstance(one, dict) else getattr(one, "min_p", None)
        if min_p:
            raise ValueError(
                f"min_p {min_p}: seeded sampling has no min-p; leave it out, or start the server "
                "without --enable-deterministic-inference"
            )


def check_tokens(tokens: Any, vocab_size: int) -> None:
    """``ValueError`` for a token id that the target does not have: it would kill the scheduler."""
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        return
    for token in (min(tokens, default=0), max(tokens, default=0)):
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"input_ids has {token}, but the target's tokens are 0 to {vocab_size - 1}; "
                "tokenize with the target's own tokenizer"
            )


def _is_set(value: Any) -> bool:
    """None, False, and lists of nothing else are as good as absent."""
    if isinstance(value, list | tuple):
        return any(_is_set(item) for item in value)
    if value is None or value is False or isinstance(value, str | bytes | dict):
        return bool(value)
    return True


def _check_one(manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    if asks(manager.server_args):
        check_request(request)
        check_tokens(getattr(request, "input_ids", None), manager.model_config.vocab_size)
        if manager.server_args.enable_deterministic_inference:
            check_seeded(request)


def _keep_weights(rest: tuple[int, ...]) -> Any:
    async def answer(original: Any, manager: Any, *args: Any, **kwargs: Any) -> Any:
        if not asks(manager.server_args):
            return await original(manager, *args, **kwargs)
        return False, WEIGHTS_STAY, *rest

    return answer


def register() -> None:
    """Hook the refusals of requests and weight updates into the process that takes them."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    manager = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
    HookRegistry.register(f"{manager}._validate_one_request", _check_one, HookType.BEFORE)
    for method, rest in WEIGHT_UPDATES.items():
        HookRegistry.register(f"{manager}.{method}", _keep_weights(rest), HookType.AROUND)
