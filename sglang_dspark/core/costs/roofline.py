"""Kind ``roofline``: step times computed from a model's config and a GPU's data sheet.

A forward takes the longer of reading the weights and multiplying by them, each at a fitted share
of the data sheet, plus a constant per step and the passes over the logits. One GPU: communication
is not modelled. Knows no file and no probes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.core.costs.schema import (
    ContextCost,
    DraftCost,
    GraphTiers,
    HostCost,
    Memory,
    PrefillCost,
    Watts,
    check_choice,
    check_least,
    check_positive,
)

LOGIT_BYTES = 4  # logits are kept in fp32
EAGER_LAYER_S = 1e-4  # twenty launches of five microseconds each: assumed
IDLE_SHARE = 0.1  # of the GPU's limit: assumed


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A dense decoder with gated MLPs and grouped-query attention, named as its config.json is."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    bytes_per_value: int = 2
    """Of weights and KV: 2 for bf16."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_least(name, value, 0 if name == "tie_word_embeddings" else 1)

    @property
    def layer_params(self) -> int:
        """Weights of one decoder layer; norms are left out."""
        attended = (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        return self.hidden_size * (2 * attended + 3 * self.intermediate_size)

    @property
    def body_params(self) -> int:
        """Weights of all decoder layers."""
        return self.num_hidden_layers * self.layer_params

    @property
    def head_params(self) -> int:
        """Weights of the language-model head."""
        return self.vocab_size * self.hidden_size

    @property
    def weights_bytes(self) -> int:
        """Bytes the model occupies."""
        tables = 1 if self.tie_word_embeddings else 2
        return (self.body_params + tables * self.head_params) * self.bytes_per_value

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values; sliding windows are ignored, which is pessimistic."""
        per_layer = 2 * self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * per_layer * self.bytes_per_value

    @property
    def pair_flops(self) -> int:
        """Attention's floating-point operations per pair of tokens."""
        return 4 * self.num_hidden_layers * self.num_attention_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class GpuSheet:
    """One GPU as its data sheet states it."""

    name: str
    flops: float
    """Dense floating-point operations per second in the model's dtype."""
    memory_bytes_per_s: float
    memory_bytes: int
    limit_watts: float
    """Maximum board power."""

    def __post_init__(self) -> None:
        for name in ("flops", "memory_bytes_per_s", "memory_bytes", "limit_watts"):
            check_positive(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What a real engine reaches of the data sheet."""

    basis: str
    """``fitted`` to timed steps or ``assumed``; ``source`` says which and on what."""
    mfu: float
    """Share of the peak operations per second."""
    mbu: float
    """Share of the peak memory bandwidth."""
    step_s: float
    """Constant seconds of a target forward."""
    draft_step_s: float
    """Constant seconds of drafting one block."""
    logit_passes: float
    """Times that sampling reads or writes each row of logits."""
    source: str

    def __post_init__(self) -> None:
        check_choice("efficiency basis", self.basis, ("fitted", "assumed"))
        for name in ("mfu", "mbu"):
            check_positive(name, getattr(self, name))
            if getattr(self, name) > 1:
                raise ValueError(f"{name} {getattr(self, name):g} exceeds the data sheet; use <= 1")
        for name in ("step_s", "draft_step_s", "logit_passes"):
            check_least(name, getattr(self, name), 0.0)


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """DSpark's drafter: layers of the target's shape in parallel, then one head step per token."""

    gamma: int
    """Draft tokens per block."""
    num_hidden_layers: int = 5
    num_target_layers: int = 5
    """Target layers whose hidden states are injected."""
    markov_rank: int = 256
    """Rank of the Markov bias W1 W2; 0 without it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_least(name, value, 0 if name == "markov_rank" else 1)


@dataclass(frozen=True, kw_only=True)
class RooflineCost:
    """Kind ``roofline``: everything the formulas read."""

    model: ModelConfig
    gpu: GpuSheet
    efficiency: Efficiency
    drafter: Drafter | None
    """None serves without speculation."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ("analytic",))

    @property
    def _bytes_per_s(self) -> float:
        return self.gpu.memory_bytes_per_s * self.efficiency.mbu

    @property
    def _flops(self) -> float:
        return self.gpu.flops * self.efficiency.mfu

    def _linear_s(self, params: int, tokens: int) -> float:
        """Weights applied to ``tokens`` rows: the longer of reading and multiplying."""
        read_s = params * self.model.bytes_per_value / self._bytes_per_s
        return max(read_s, 2.0 * params * tokens / self._flops)

    def _logits_s(self, rows: int) -> float:
        row_bytes = LOGIT_BYTES * self.model.vocab_size * self.efficiency.logit_passes
        return rows * row_bytes / self._bytes_per_s

    def verify_s(self, tokens: int) -> float:
        """Seconds of a target forward over ``tokens`` with an empty context, unpadded."""
        params = self.model.body_params + self.model.head_params
        return self.efficiency.step_s + self._linear_s(params, tokens) + self._logits_s(tokens)

    @property
    def drafter_params(self) -> int:
        """Weights of the drafter beyond the shared embedding and head."""
        if self.drafter is None:
            return 0
        size = self.model.hidden_size
        return (
            self.drafter.num_hidden_layers * self.model.layer_params
            + self.drafter.num_target_layers * size * size
            + 2 * self.model.vocab_size * self.drafter.markov_rank
        )

    def draft_s(self, requests: int) -> float:
        """Seconds to draft one block for ``requests``: backbone once, then gamma head steps."""
        drafter = self.drafter
        if drafter is None or requests == 0:
            return 0.0
        head = self.model.vocab_size * drafter.markov_rank
        backbone = self.drafter_params - 2 * head + self.model.head_params
        step_s = self._linear_s(head, requests) + self._logits_s(requests)
        return (
            self.efficiency.draft_step_s
            + self._linear_s(backbone, requests * drafter.gamma)
            + drafter.gamma * step_s
        )

    def draft_cost(self) -> DraftCost | None:
        """The drafting part at SGLang's captured batch sizes."""
        if self.drafter is None:
            return None
        requests = tuple(sglang_request_tiers(256))
        return DraftCost(
            gamma=self.drafter.gamma,
            requests=requests,
            seconds=tuple(self.draft_s(r) for r in requests),
            between="staircase",
            origin="analytic",
            note="roofline of the backbone and of one Markov head step per draft token",
        )

    def prefill_cost(self) -> PrefillCost:
        """The prefill part: linear layers per token, attention per pair, one row of logits."""
        model = self.model
        launches_s = EAGER_LAYER_S * model.num_hidden_layers
        base_s = self.efficiency.step_s + launches_s
        return PrefillCost(
            base_s=base_s,
            token_s=2.0 * model.body_params / self._flops,
            pair_s=model.pair_flops / self._flops,
            floor_s=base_s + model.body_params * model.bytes_per_value / self._bytes_per_s,
            origin="analytic",
            note="roofline at the fitted efficiency; prefill itself was not timed; launches of "
            f"{EAGER_LAYER_S * 1e6:g} us per layer assumed, since prefill runs outside the graphs",
        )

    def context_cost(self) -> ContextCost:
        """The context part: every forward reads the KV of every request."""
        return ContextCost(
            token_s=self.model.kv_bytes_per_token / self._bytes_per_s,
            reference_tokens=0,
            origin="analytic",
            note="KV bytes over the fitted bandwidth; sliding windows are ignored (pessimistic)",
        )

    def graph_tiers(self) -> GraphTiers:
        """The graphs part: SGLang's batch sizes for speculation, in tokens."""
        width = 1 if self.drafter is None else self.drafter.gamma + 1
        return GraphTiers(
            tiers_tokens=tuple(width * r for r in sglang_request_tiers(256)),
            beyond_last_s=EAGER_LAYER_S * self.model.num_hidden_layers,
            origin="analytic",
            note=f"SGLang's speculative batch sizes up to 256, times {width} tokens; beyond them "
            f"launches of {EAGER_LAYER_S * 1e6:g} us per layer are assumed",
        )

    def memory(self) -> Memory:
        """The memory part of one GPU; the drafter keeps KV of its own layers for every token."""
        drafter_bytes = self.drafter_params * self.model.bytes_per_value
        layers = self.model.num_hidden_layers
        depth = layers + (self.drafter.num_hidden_layers if self.drafter else 0)
        return Memory(
            gpus=1,
            gpu_memory_bytes=int(self.gpu.memory_bytes),
            weights_bytes=self.model.weights_bytes + drafter_bytes,
            kv_bytes_per_token=self.model.kv_bytes_per_token // layers * depth,
            origin="analytic",
            note="from the config and the data sheet, the drafter's weights and KV included",
        )

    def watts(self) -> Watts:
        """The watts part: busy at the board's limit."""
        return Watts(
            idle=IDLE_SHARE * self.gpu.limit_watts,
            busy=self.gpu.limit_watts,
            origin="analytic",
            note=f"data sheet's limit when busy; {IDLE_SHARE:.0%} of it when idle is assumed",
        )

    def host_cost(self) -> HostCost:
        """The host part: nothing beyond the constant of each forward."""
        return HostCost(step_s=0.0, origin="analytic", note="contained in the forward's constant")


def sglang_plain_tiers(most: int) -> list[int]:
    """Batch sizes for which SGLang captures graphs without speculation, up to ``most``.

    1, 2, 4, 8, 12, then by 8 to 256, by 16 beyond (arg_groups/cuda_graph_hook.py, 0.5.21).
    """
    sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, most + 1, 16)]
    return [r for r in sizes if r <= most]


def sglang_request_tiers(most: int) -> list[int]:
    """Batch sizes for which SGLang captures graphs under speculation, up to ``most``.

    1-8, then by 2 to 32, by 4 from 40 to 64, by 8 from 72 to 256, by 16 beyond
    (arg_groups/cuda_graph_hook.py, 0.5.21).
    """
    sizes = [*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8)]
    return [r for r in [*sizes, *range(272, most + 1, 16)] if r <= most]
