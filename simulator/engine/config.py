"""Engine settings of a simulated replica: SGLang's names and defaults, checked.

Knows no trace and no policy. Defaults are those of SGLang 0.5.21 unless a line says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.engine.layout import Engine

PLACES, SPECULATIVE_PLACES = 256, 48
"""Decode batch limits that nobody set; SGLang's own is the second, under speculation."""
_NEW_TOKEN_RATIO = 0.7  # SGLANG_INIT_NEW_TOKEN_RATIO
_LEAST_NEW_TOKEN_RATIO = 0.7 * 0.14  # times SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
_NEW_TOKEN_RATIO_STEPS = 600  # SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
REQUEST_MARGIN_TOKENS = 64
"""KV tokens that no single request may fill: room for one step's drafts and a page's rounding."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How one replica schedules. ``ValueError`` on settings SGLang would refuse."""

    max_running_requests: int | None = None
    """Decode batch limit. None is SGLang's 48 under speculation, else 256; set what you run."""
    chunked_prefill_size: int = 8192
    """Prompt tokens per prefill step."""
    max_prefill_tokens: int = 16384
    """Prompt tokens admitted into one prefill step unless a single prompt is longer."""
    prefill_decode_interval: int = 0
    """Decode steps that running requests get after a prefill step before the next one may start."""
    min_free_slots_delay: int | None = None
    """Free places in the decode batch below which no new prompt is prefilled. None is SGLang's own
    choice: a sixth of the batch limit, 2 to 4, under speculation from a limit of 8 on, else 1."""
    disable_overlap_schedule: bool = False
    """Form each batch when the last step has ended, instead of while it runs."""
    enable_mixed_chunk: bool = False
    """Running requests advance by one token within prefill steps instead of waiting."""
    page_size: int = 1
    """KV tokens per page."""
    enable_prefix_cache: bool = True
    """Reuse the KV of shared prompt blocks (radix cache)."""
    kv_pool_tokens: int | None = None
    """KV memory of one replica; None takes the cost model's."""
    confidence_lag_steps: int = 2
    """Age of the confidences the budget is computed from (paper 5.2)."""
    admission_new_tokens: int = 4096
    """max_new_tokens that admission assumes of a request that does not say its own, and the most
    that it reserves for any; SGLang clips at 4096."""

    def __post_init__(self) -> None:
        positive = (
            "max_running_requests",
            "chunked_prefill_size",
            "max_prefill_tokens",
            "page_size",
            "confidence_lag_steps",
            "admission_new_tokens",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if self.prefill_decode_interval < 0:
            raise ValueError(
                f"prefill_decode_interval {self.prefill_decode_interval} must be at least 0"
            )
        if self.min_free_slots_delay is not None and self.min_free_slots_delay < 1:
            raise ValueError(f"min_free_slots_delay {self.min_free_slots_delay} must be at least 1")
        most = self.places(speculative=False)
        if most > 8192:
            raise ValueError(f"max_running_requests {most} must be <= 8192")
        if self.confidence_lag_steps > 16:
            raise ValueError(f"confidence_lag_steps {self.confidence_lag_steps} must be <= 16")
        if self.enable_mixed_chunk and most >= self.chunked_prefill_size:
            raise ValueError(
                f"enable_mixed_chunk needs chunked_prefill_size {self.chunked_prefill_size} above "
                f"max_running_requests {most}"
            )
        if self.kv_pool_tokens is not None and self.kv_pool_tokens < 4 * REQUEST_MARGIN_TOKENS:
            raise ValueError(
                f"kv_pool_tokens {self.kv_pool_tokens} must be at least {4 * REQUEST_MARGIN_TOKENS}"
            )

    def places(self, *, speculative: bool) -> int:
        """Requests that decode together at most."""
        if self.max_running_requests is not None:
            return self.max_running_requests
        return SPECULATIVE_PLACES if speculative else PLACES

    def engine(
        self,
        *,
        kv_pool_tokens: int,
        block_tokens: int,
        seed: int,
        closed_loop: bool,
        speculative: bool = False,
        role: str = "serve",
    ) -> Engine:
        """The settings as compiled code reads them, for a pool of ``kv_pool_tokens``.

        An engine of role ``prefill`` hands requests over at their first token, and admits them
        without room for an output; one of role ``decode`` admits them as they come.
        """
        prefill_only = role == "prefill"
        pool = kv_pool_tokens
        if pool < 4 * REQUEST_MARGIN_TOKENS:
            raise ValueError(
                f"KV memory of {pool} tokens holds no request; choose a larger GPU or smaller model"
            )
        if self.enable_prefix_cache and block_tokens % self.page_size:
            raise ValueError(
                f"block_tokens {block_tokens} of the trace is no multiple of page_size "
                f"{self.page_size}; choose a page size that divides it"
            )
        return Engine(
            max_running=self.places(speculative=speculative),
            chunk_tokens=self.chunked_prefill_size,
            max_prefill_tokens=self.max_prefill_tokens,
            prefill_decode_interval=self.prefill_decode_interval,
            min_free_slots=1 if role == "decode" else self._min_free_slots(speculative),
            mixed_chunk=self.enable_mixed_chunk,
            overlap=not self.disable_overlap_schedule,
            page_tokens=self.page_size,
            pool_pages=pool // self.page_size,
            block_tokens=block_tokens if self.enable_prefix_cache else 0,
            lag_steps=self.confidence_lag_steps,
            first_new_token_ratio=_NEW_TOKEN_RATIO,
            least_new_token_ratio=_LEAST_NEW_TOKEN_RATIO,
            new_token_ratio_decay=(_NEW_TOKEN_RATIO - _LEAST_NEW_TOKEN_RATIO)
            / _NEW_TOKEN_RATIO_STEPS,
            admission_new_tokens=1 if prefill_only else self.admission_new_tokens,
            prefill_only=prefill_only,
            closed_loop=closed_loop,
            seed=seed,
        )

    def _min_free_slots(self, speculative: bool) -> int:
        """As SGLang 0.5.21, managers/min_free_slots_delayer.py, resolves it."""
        most = self.places(speculative=speculative)
        if self.min_free_slots_delay is not None:
            return min(self.min_free_slots_delay, most)
        return min(4, max(2, (most + 5) // 6)) if speculative and most >= 8 else 1
