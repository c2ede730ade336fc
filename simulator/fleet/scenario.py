"""What a simulation depends on (``Scenario``) and what it leaves (``Outcome``).

Owns the checks that the parts fit each other, and the request records a replay starts from. Knows
no event loop.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.planner import compile_policy
from sglang_dspark.core.policy import PolicyFile
from simulator.acceptance.load import AcceptanceProfile
from simulator.engine.config import EngineConfig
from simulator.engine.layout import REJECTED, REQUEST, Counts, Engine, Memory, Records
from simulator.fleet.config import FleetConfig
from simulator.fleet.judged import MOST_WARM_UP, WARM_UP, steady_requests
from simulator.fleet.pools import Pool, make_pools
from simulator.slo import PRESETS, Slo
from traces import Trace
from traces.columns import Floats

MOST_REPLICAS = 1024
"""Each keeps its own memory: more are slow to set up and say nothing new."""
MOST_RATE = 1e6
"""Beyond it, or as far below 1, a trace's times lose their digits."""


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
    """Replicas behind one router."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """How requests reach the replicas."""
    pool_models: Mapping[str, CostModel] = field(default_factory=dict)
    """The cost models that pools of the fleet name, by that name."""
    slo: Slo = PRESETS["standard"]
    """Bounds of requests whose trace names no class; shedding looks at the TTFT."""
    rate_factor: float = 1.0
    """Arrivals come this many times as fast as in the trace."""
    concurrency: int | None = None
    """Closed loop: this many clients, each sending its next request when one ends."""
    warm_up: float = WARM_UP
    """Open loop: share of its time that is left out of the figures at each end."""
    judged: tuple[int, int] | None = None
    """(first, end) places in the trace of the requests that are judged; None: by the rule of
    ``simulator.fleet.judged``."""
    seed: int = 0
    """Of acceptance and confidences; the same seed gives policies common random numbers."""
    step_capacity: int = 0
    """Step records buffered between two calls of the sink; 0 records no steps."""

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise ValueError(
                f"replicas {self.replicas} must be at least 1 and at most {MOST_REPLICAS}; replay "
                "a share of the traffic on a share of a larger fleet"
            )
        if not 1 / MOST_RATE <= self.rate_factor <= MOST_RATE:
            raise ValueError(
                f"rate factor {self.rate_factor} must be above 0: from {1 / MOST_RATE:g} to "
                f"{MOST_RATE:g}"
            )
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency {self.concurrency} must be at least 1")
        if not 0 <= self.warm_up <= MOST_WARM_UP:
            raise ValueError(
                f"warm-up {self.warm_up:g} must be a share from 0 to {MOST_WARM_UP} of the trace's "
                "time, left out at each end"
            )
        self._check_fleet()
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be between 0 and 2^63 - 1")

    def _check_fleet(self) -> None:
        fleet = self.fleet
        if self.concurrency is not None and fleet != FleetConfig():
            default = asdict(FleetConfig())
            name = next(key for key, value in asdict(fleet).items() if value != default[key])
            raise ValueError(
                f"concurrency {self.concurrency} with fleet.{name}: the clients of a closed loop "
                "stay with one replica; drop one of the two"
            )
        slots = sum(pool.most for pool in self.pools)
        for failure in fleet.failures.at if fleet.failures else ():
            if failure.replica >= slots:
                raise ValueError(
                    f"fleet: failure of replica {failure.replica}, but the last of {slots} "
                    f"replicas is {slots - 1}"
                )

    @functools.cached_property
    def pools(self) -> tuple[Pool, ...]:
        """The replicas, by kind; replica numbers count through them in this order."""
        return make_pools(
            self.fleet,
            replicas=self.replicas,
            cost_model=self.cost_model,
            engine=self.engine,
            pool_models=self.pool_models,
        )

    @functools.cached_property
    def judged_requests(self) -> slice:
        """Places in the trace of the requests that are judged."""
        if self.judged is not None:
            return slice(*self.judged)
        arrival_s = self.trace.arrival_s
        return steady_requests(arrival_s, concurrency=self.concurrency, warm_up=self.warm_up)

    @functools.cached_property
    def recorded_s(self) -> Floats:
        """[N] when requests come if none waits for an answer: seconds from the first on."""
        arrival_s = self.trace.arrival_s
        recorded_s: Floats = (arrival_s - arrival_s[0]) / self.rate_factor
        return recorded_s

    @property
    def turns_wait(self) -> bool:
        """Whether turns of the trace's sessions are sent when they have been answered."""
        handed = any(pool.role == "decode" for pool in self.pools)
        return self.concurrency is None and not handed

    @property
    def kv_pool_tokens(self) -> int:
        """KV memory of one replica, of the smallest where they differ."""
        return min(pool.kv_pool_tokens for pool in self.pools)

    @property
    def gpus(self) -> int:
        """GPUs at the start."""
        return sum(pool.replicas * pool.cost_model.gpus for pool in self.pools)

    def check(self) -> None:
        """Raise ``ValueError`` on parts that do not fit each other, before anything runs."""
        request_records(self)
        if self.policy.correction.on:
            raise ValueError(
                "the policy is corrected online, which the simulator does not do; replay it with "
                "its file's correction taken out"
            )
        gamma = self.acceptance.gamma
        self._warn_of_turns()
        self.policy.calibration.arrays(gamma)
        self.acceptance.tables(self.trace.domain_names)
        for pool in self.pools:
            self._check_pool(pool, gamma)

    def _warn_of_turns(self) -> None:
        waiting = int((self.trace.follows >= 0).sum())
        if waiting and not self.turns_wait:
            why = (
                "the clients of a closed loop send one request after the other"
                if self.concurrency is not None
                else "prefill and decode pools are replayed at recorded times"
            )
            warnings.warn(
                f"{self.trace.path}: {waiting} turns of sessions do not wait for the answer before "
                f"them: {why}",
                stacklevel=3,
            )

    def _check_pool(self, pool: Pool, gamma: int) -> None:
        model = pool.cost_model
        bounds = self.places(pool)
        compile_policy(self.policy.policy, self.belief or model, gamma, bounds)
        self.compiled_engine(pool)
        drafted = model.draft.gamma if model.draft else gamma
        if drafted != gamma:
            warnings.warn(
                f"cost model {model.name!r} prices drafting {drafted} tokens, acceptance "
                f"profile {self.acceptance.name!r} drafts {gamma}; drafting is priced as {drafted}",
                stacklevel=3,
            )

    def places(self, pool: Pool | None = None) -> int:
        """Decode batch limit of a pool's replicas (the first's)."""
        speculative = self.policy.policy.drafts
        return (pool or self.pools[0]).engine.places(speculative=speculative)

    def compiled_engine(self, pool: Pool | None = None) -> Engine:
        """The engine settings of a pool's replicas (the first's) as the kernel reads them."""
        pool = pool or self.pools[0]
        return pool.engine.engine(
            kv_pool_tokens=pool.kv_pool_tokens,
            block_tokens=self.trace.block_tokens,
            seed=self.seed,
            closed_loop=self.concurrency is not None,
            speculative=self.policy.policy.drafts,
            role=pool.role,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a simulation leaves: the request records and each replica's memory."""

    scenario: Scenario
    requests: Records
    """[N] REQUEST, in trace order."""
    memories: tuple[Memory, ...]
    """One per replica."""
    marks: tuple[tuple[Counts, Counts], ...]
    """Per replica, what it had counted when the first judged request was about to be sent, and the
    first after them."""
    spans: tuple[tuple[tuple[float, float], ...], ...]
    """Per replica, (from, to) in seconds: when it was paid for; infinite where it never ended."""
    interrupted: bool
    """True when Ctrl-C ended the run early; unfinished requests keep their status."""


def request_records(scenario: Scenario) -> Records:
    """REQUEST rows for the trace; those that cannot fit every replica's KV memory are rejected."""
    trace = scenario.trace
    most = min(pool.longest_request_tokens for pool in scenario.pools)
    requests = np.zeros(len(trace), REQUEST)
    requests["arrival_s"] = scenario.recorded_s
    requests["ready_s"] = requests["arrival_s"]
    for name in ("first_token_s", "finish_s", "last_emit_s", "transfer_s"):
        requests[name] = np.nan
    requests["prompt_tokens"] = trace.prompt_tokens
    requests["output_limit"] = np.minimum(trace.output_tokens, most - trace.prompt_tokens)
    requests["max_new_tokens"] = trace.max_new_tokens
    requests["domain"] = trace.domain
    requests["priority"] = trace.priority
    rejected = requests["output_limit"] < 1
    if rejected.all():
        raise ValueError(
            f"{trace.path}: no request fits the KV memory of {scenario.kv_pool_tokens} tokens "
            f"(shortest prompt {int(trace.prompt_tokens.min())}); choose a cost model with more "
            "memory"
        )
    requests["status"][rejected] = REJECTED
    requests["finish_s"][rejected] = requests["arrival_s"][rejected]
    return requests
