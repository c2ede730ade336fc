"""What ``python -m simulator.run`` runs: defaults < --config file < flags, checked in one place.

``config.json`` of a result folder is this record, so ``--config results/x/config.json`` repeats
the run. Knows no simulation.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import (
    DEFAULT_POLICY,
    POLICIES,
    parse_policy,
    policy_forms,
    policy_label,
)
from sglang_dspark.files import decode_record, read_json
from simulator.acceptance.load import DEFAULT_PROFILE, load_acceptance, shipped_profiles
from simulator.acceptance.whose import default_profile, mismatch
from simulator.engine.config import PLACES, SPECULATIVE_PLACES, EngineConfig
from simulator.fleet.config import FleetConfig
from simulator.fleet.judged import WARM_UP
from simulator.fleet.scenario import Scenario
from simulator.slo import PRESETS, bounds_s, parse_slo
from simulator.study.server import engine_of
from simulator.study.study import Run
from traces import Trace, load_trace, shipped_traces

DEFAULT_COST_MODEL = "h200-qwen3-14b-analytic"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A comparison of policies on one trace."""

    trace: str
    """Shipped name or file of the request trace."""
    policies: tuple[str, ...] = field(default_factory=lambda: tuple(POLICIES))
    """Policy names with an optional parameter, or policy files."""
    current: str | None = None
    """What runs today, which the others are compared with; None: the server's own default where it
    is among the policies, else the first."""
    cost_model: str = DEFAULT_COST_MODEL
    """Shipped name or file."""
    acceptance: str | None = None
    """Shipped name or file; None: the cost model's own, else the shipped default."""
    replicas: int = 1
    """Replicas behind one router."""
    rate: float = 1.0
    """Factor on the arrival rate."""
    warm_up: float | None = None
    """Open loop: share of its time that is left out of the figures at each end; None: 5 %."""
    concurrency: tuple[int, ...] = ()
    """Closed loop with so many clients; several make a sweep; none replays the arrivals."""
    slo: str = "standard"
    """SLO preset or TTFT_MS:TPOT_MS, for requests whose trace names no class."""
    seed: int = 0
    """Of acceptance and confidences."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Settings of each replica."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """How requests reach the replicas."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Written with the results: versions and the trace's sha256; not read back."""

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies must name at least one policy")
        for name in ("policies", "concurrency"):
            values = getattr(self, name)
            repeated = [v for v in values if values.count(v) > 1]
            if repeated:
                raise ValueError(f"{name} lists {repeated[0]!r} twice; list each once")
        if self.concurrency and self.rate != 1.0:
            raise ValueError(
                f"rate {self.rate:g} with concurrency {self.concurrency[0]}: the clients of a "
                "closed loop send when they are answered; drop one of the two"
            )
        if self.concurrency and self.warm_up is not None:
            raise ValueError(
                f"warm-up {self.warm_up:g} with concurrency {self.concurrency[0]}: a closed "
                "loop is judged while all its clients wait for answers; drop one of the two"
            )

    @property
    def compared(self) -> tuple[str, ...]:
        """The policies, with the current one first where it is not among them."""
        if self.current is None:
            return self.policies
        return (self.current, *others(self.current, self.policies))

    @property
    def baseline(self) -> str:
        """The label of what the others are compared with."""
        labels = [label_of(text) for text in self.compared]
        wanted = label_of(self.current or DEFAULT_POLICY)
        return wanted if wanted in labels else labels[0]


def load_run_config(path: str | Path, trace: str | None = None) -> RunConfig:
    """Read a ``--config`` file; unknown keys and wrong types are errors.

    ``trace`` stands for the file's own, which may be left out then.
    """
    value = read_json(path)
    if isinstance(value, dict) and trace is not None:
        value["trace"] = trace
    if isinstance(value, dict) and "trace" not in value:
        raise ValueError(f"{path}: names no trace; give one beside it, for example chat")
    return decode_record(value, RunConfig, where=str(path))


def first_config(config_file: str | None, trace: str | None) -> RunConfig:
    """What a command begins from: its ``--config`` file, or else the trace and the defaults."""
    if config_file:
        return load_run_config(config_file, trace)
    if trace:
        return RunConfig(trace=trace)
    raise ValueError("no trace given; name one, for example chat")


def others(current: str, policies: Iterable[str]) -> tuple[str, ...]:
    """``policies`` without the current one; a file is only ever itself, whatever it is called."""

    def one(text: str) -> str:
        return text if _is_file(text) else label_of(text)

    return tuple(text for text in policies if one(text) != one(current))


def _is_file(text: str) -> bool:
    return text.endswith(".json") or "/" in text


def label_of(text: str) -> str:
    """How results call a policy: its canonical name, or the stem of its file.

    The tuner calls every file ``policy.json``: such a one goes by its folder.
    """
    if _is_file(text):
        path = Path(text)
        return path.parent.name or path.stem if path.name == "policy.json" else path.stem
    return policy_label(parse_policy(text).policy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """A run configuration with its files loaded."""

    config: RunConfig
    """With the acceptance profile that is used."""
    trace: Trace
    cost_model: CostModel
    runs: tuple[Run, ...]
    acceptance_mismatch: tuple[str, ...]
    """A sentence on each cost model whose own acceptance profile is not the one used."""

    @property
    def acceptance(self) -> str:
        """The profile in use, as ``--acceptance`` names it."""
        return self.config.acceptance or DEFAULT_PROFILE


def load_study(config: RunConfig) -> Study:
    """Load and check everything before the first simulated step."""
    policies = [(label_of(text), parse_policy(text)) for text in config.compared]
    labels = [label for label, _ in policies]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"policies name {label!r} twice; list it once or rename its file")
    slo = parse_slo(config.slo)
    cost_model = load_cost_model(config.cost_model)
    named = [pool.cost_model for pool in config.fleet.pools]
    pool_models = {name: load_cost_model(name) for name in named if name is not None}
    models = {config.cost_model: cost_model} | pool_models
    profile, mismatches = _acceptance(config, models)
    acceptance = load_acceptance(profile)
    trace = load_trace(config.trace)
    runs = [
        Run(
            label=label,
            slo=slo,
            scenario=Scenario(
                trace=trace,
                cost_model=cost_model,
                acceptance=acceptance,
                policy=policy,
                engine=config.engine,
                replicas=config.replicas,
                fleet=config.fleet,
                pool_models=pool_models,
                slo=slo,
                rate_factor=config.rate,
                warm_up=WARM_UP if config.warm_up is None else config.warm_up,
                concurrency=concurrency,
                seed=config.seed,
            ),
        )
        for concurrency in (config.concurrency or (None,))
        for label, policy in policies
    ]
    bounds_s(trace, slo)
    for run in runs:
        run.scenario.check()
    return Study(
        config=with_flags(config, acceptance=profile),
        trace=trace,
        cost_model=cost_model,
        runs=tuple(runs),
        acceptance_mismatch=mismatches,
    )


def _acceptance(config: RunConfig, models: Mapping[str, CostModel]) -> tuple[str, tuple[str, ...]]:
    """The profile to use, and a warning on every cost model of the fleet that it is not of."""
    used = [pool.cost_model or config.cost_model for pool in config.fleet.pools]
    used = list(dict.fromkeys(used)) or [config.cost_model]
    profile = config.acceptance or default_profile(models[used[0]], used[0])
    said = [mismatch(models[source], source, profile) for source in used]
    found = tuple(sentence for sentence in said if sentence)
    for sentence in found:
        warnings.warn(sentence, stacklevel=3)
    return profile, found


_COMMON_FLAGS = (
    "trace", "cost_model", "acceptance", "replicas", "rate", "concurrency", "slo", "seed",
)  # fmt: skip


def flag_help(name: str) -> str:
    """What the commands that replay a trace say of a flag that they share: names and default."""
    return {
        "trace": f"request trace: {', '.join(shipped_traces())}, or a .jsonl file",
        "policy": f"{policy_forms()}, or a policy file",
        "cost_model": "what a step costs: one that dspark list cost-models shows, or a .json file, "
        f"be it SGLang's own SPS table (default: {DEFAULT_COST_MODEL})",
        "acceptance": f"what is accepted: {', '.join(shipped_profiles())}, or a .json or .parquet "
        f"file (default: the cost model's own, else {DEFAULT_PROFILE})",
        "slo": f"bounds on latency: {', '.join(PRESETS)}, or two numbers like 500:30 "
        f"(default: {RunConfig.slo})",
        "replicas": f"replicas behind one router (default: {RunConfig.replicas})",
        "current": "what runs today, which the others are compared with (default: "
        f"{DEFAULT_POLICY}, the server's own default)",
        "warm_up": "share of the trace's time left out of the figures at each end, while the "
        f"server fills and empties (default: {WARM_UP:g})",
        "rate": f"arrivals X times as fast (default: {RunConfig.rate:g})",
        "server": "what traces record (server.json) or prices from-server wrote: its settings are "
        "the engine's, in place of those of --config",
        "max_running_requests": "requests that decode together on a replica (default: SGLang's, "
        f"{SPECULATIVE_PLACES} under speculation, else {PLACES})",
        "seed": f"of acceptance and confidences (default: {RunConfig.seed})",
        "jobs": "worker processes, by default one for each core",
        "ray": "run on this Ray cluster; local starts one",
    }[name]


def common_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the commands that replay a trace have in common, for ``with_flags``."""
    given = {name: getattr(arguments, name) for name in _COMMON_FLAGS}
    return given | {
        "engine": engine_of(arguments.server),
        "max_running_requests": arguments.max_running_requests,
    }


def with_flags(
    config: RunConfig, *, max_running_requests: int | None = None, **flags: Any
) -> RunConfig:
    """``config`` with every flag that was given; the batch limit is one of its engine."""
    given = {name: value for name, value in flags.items() if value is not None}
    config = dataclasses.replace(config, **given)
    if max_running_requests is None:
        return config
    engine = dataclasses.replace(config.engine, max_running_requests=max_running_requests)
    return dataclasses.replace(config, engine=engine)
