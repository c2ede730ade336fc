"""What a simulation depends on (``Scenario``) and what it leaves (``Outcome``).

Owns the checks that the parts fit each other, and the request records a replay starts from. Knows
no event loop.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import numpy as np

from sglang_dspark.core.cost import CostModel
from sglang_dspark.core.planner import compile_policy
from sglang_dspark.core.policy import PolicyFile
from simulator.acceptance import AcceptanceProfile
from simulator.config import REQUEST_MARGIN_TOKENS, EngineConfig
from simulator.layout import REJECTED, REQUEST, Engine, Memory, Records
from traces import Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenario:
    """Everything a simulation depends on."""

    trace: Trace
    """Requests in arrival order."""
    cost_model: CostModel
    """Prices the simulated steps."""
    acceptance: AcceptanceProfile
    """Draws what the target accepts and what the drafter believed."""
    policy: PolicyFile
    """Decides how much to verify."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Settings of each replica."""
    belief: CostModel | None = None
    """Cost model the policy plans with; None means the true one."""
    replicas: int = 1
    """Replicas behind a round-robin router."""
    rate_factor: float = 1.0
    """Arrivals come this many times as fast as in the trace."""
    concurrency: int | None = None
    """Closed loop: this many clients, each sending its next request when one ends."""
    seed: int = 0
    """Of acceptance and confidences; the same seed gives policies common random numbers."""
    step_capacity: int = 0
    """Step records buffered between two calls of the sink; 0 records no steps."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas {self.replicas} must be at least 1")
        if not (math.isfinite(self.rate_factor) and self.rate_factor > 0):
            raise ValueError(f"rate factor {self.rate_factor} must be a finite number above 0")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency {self.concurrency} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be between 0 and 2^63 - 1")

    def check(self) -> None:
        """Raise ``ValueError`` on parts that do not fit each other, before anything runs."""
        request_records(self)
        if self.policy.correction.on:
            raise ValueError(
                "the policy is corrected online, which the simulator does not do; replay it with "
                "its file's correction taken out"
            )
        bounds = self.engine.max_running_requests
        gamma = self.acceptance.gamma
        compile_policy(self.policy.policy, self.belief or self.cost_model, gamma, bounds)
        self.policy.calibration.arrays(gamma)
        self.acceptance.tables(self.trace.domain_names)
        self.compiled_engine()
        drafted = self.cost_model.draft.gamma if self.cost_model.draft else gamma
        if drafted != gamma:
            warnings.warn(
                f"cost model {self.cost_model.name!r} prices drafting {drafted} tokens, acceptance "
                f"profile {self.acceptance.name!r} drafts {gamma}; drafting is priced as {drafted}",
                stacklevel=2,
            )

    @property
    def kv_pool_tokens(self) -> int:
        """KV memory of one replica: the engine's setting, or the cost model's."""
        return self.engine.kv_pool_tokens or self.cost_model.kv_pool_tokens

    def compiled_engine(self) -> Engine:
        """The engine settings of each replica as the kernel reads them."""
        return self.engine.engine(
            kv_pool_tokens=self.kv_pool_tokens,
            block_tokens=self.trace.block_tokens,
            seed=self.seed,
            closed_loop=self.concurrency is not None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a simulation leaves: the request records and each replica's memory."""

    scenario: Scenario
    requests: Records
    """[N] REQUEST, in trace order."""
    memories: tuple[Memory, ...]
    """One per replica."""
    interrupted: bool
    """True when Ctrl-C ended the run early; unfinished requests keep their status."""


def request_records(scenario: Scenario) -> Records:
    """REQUEST rows for the trace; those that cannot fit one replica's KV memory are rejected."""
    trace = scenario.trace
    pool = scenario.kv_pool_tokens
    most = pool - REQUEST_MARGIN_TOKENS - 2 * scenario.engine.page_size
    requests = np.zeros(len(trace), REQUEST)
    requests["arrival_s"] = (trace.arrival_s - trace.arrival_s[0]) / scenario.rate_factor
    for name in ("first_token_s", "finish_s", "last_emit_s"):
        requests[name] = np.nan
    requests["prompt_tokens"] = trace.prompt_tokens
    requests["output_limit"] = np.minimum(trace.output_tokens, most - trace.prompt_tokens)
    requests["domain"] = trace.domain
    requests["priority"] = trace.priority
    rejected = requests["output_limit"] < 1
    if rejected.all():
        raise ValueError(
            f"{trace.path}: no request fits the KV memory of {pool} tokens (shortest prompt "
            f"{int(trace.prompt_tokens.min())}); choose a cost model with more memory"
        )
    requests["status"][rejected] = REJECTED
    requests["finish_s"][rejected] = requests["arrival_s"][rejected]
    return requests
