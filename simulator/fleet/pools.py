"""The pools of a scenario: its fleet settings with every default filled in.

Owns how a plain replica count, pools and the cost models they name come together. Knows no trace
and no event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sglang_dspark.core.costs.model import CostModel
from simulator.engine.config import REQUEST_MARGIN_TOKENS, EngineConfig
from simulator.fleet.config import AutoscaleConfig, FleetConfig, PoolConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Equal replicas."""

    role: str
    replicas: int
    """At the start."""
    cost_model: CostModel
    engine: EngineConfig
    autoscale: AutoscaleConfig | None

    @property
    def most(self) -> int:
        """Replicas it may ever have at once."""
        return self.autoscale.most if self.autoscale else self.replicas

    @property
    def kv_pool_tokens(self) -> int:
        """KV memory of one replica: the engine's setting, or the cost model's."""
        return self.engine.kv_pool_tokens or self.cost_model.kv_pool_tokens

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the KV of so many tokens. Needs a memory block."""
        assert self.cost_model.memory is not None
        return tokens * self.cost_model.memory.kv_bytes_per_token

    @property
    def longest_request_tokens(self) -> int:
        """Prompt and output that one replica holds."""
        return self.kv_pool_tokens - REQUEST_MARGIN_TOKENS - 2 * self.engine.page_size


def make_pools(
    fleet: FleetConfig,
    *,
    replicas: int,
    cost_model: CostModel,
    engine: EngineConfig,
    pool_models: Mapping[str, CostModel],
) -> tuple[Pool, ...]:
    """The pools that ``fleet`` describes; ``ValueError`` where the parts contradict each other."""
    listed = fleet.pools or (PoolConfig(),)
    if replicas != 1 and all(pool.replicas is not None for pool in listed):
        raise ValueError(
            f"replicas {replicas}, but every pool of the fleet says how many it has; leave "
            "'replicas' out of one of them"
        )
    pools = []
    for given in listed:
        name = given.cost_model
        if name is not None and name not in pool_models:
            raise ValueError(f"fleet: the pool's cost model {name!r} is not loaded; pass it along")
        pool = Pool(
            role=given.role,
            replicas=given.replicas or replicas,
            cost_model=cost_model if name is None else pool_models[name],
            engine=given.engine or engine,
            autoscale=given.autoscale,
        )
        if pool.role == "prefill" and pool.cost_model.memory is None:
            raise ValueError(
                f"cost model {pool.cost_model.name!r} has no memory block, so the size of the KV "
                "to transfer is unknown; add one"
            )
        scale = pool.autoscale
        if scale and not scale.least <= pool.replicas <= scale.most:
            raise ValueError(
                f"fleet: a pool starts with {pool.replicas} replicas but scales between "
                f"{scale.least} and {scale.most}; start within"
            )
        pools.append(pool)
    return tuple(pools)
