"""What ``python -m simulator.tune`` tunes: trace, load, incumbents and objective, all checked.

Owns the way from flags to a setting for trials, and the command that repeats it. Knows no search.
"""

from __future__ import annotations

import argparse
import shlex
import warnings
from dataclasses import dataclass, replace

from sglang_dspark.core.policy import PolicyFile
from simulator.fleet.scenario import Scenario
from simulator.study.config import (
    RunConfig,
    common_flags,
    first_config,
    load_study,
    others,
    with_flags,
)
from simulator.study.windows import cut_windows
from simulator.tune.bench import Load, Setting
from simulator.tune.space import Family, families

_ALWAYS = ("global", "sglang", "fixed")
"""Compared with whatever the current policy is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A tuning run with everything loaded and checked."""

    config: RunConfig
    """Trace, cost model and load; its policies are the incumbents."""
    current: str
    """What runs today, as the command names it."""
    config_file: str | None
    server: str | None
    """What ``--server`` named."""
    max_running_requests: int | None
    """What the flag gave."""
    objective: str
    tuned_policies: tuple[str, ...]
    """Names to choose of; empty for all."""
    families: list[Family]
    setting: Setting
    incumbents: dict[str, PolicyFile]
    """By name; the current policy first."""
    warnings: list[str]
    """How the parts fit."""
    acceptance_mismatch: tuple[str, ...]
    """Those of them on an acceptance profile that is not the cost model's own."""

    @property
    def whole(self) -> Scenario:
        """The whole trace under the current policy, in an open loop."""
        return self.setting.base

    @property
    def loads(self) -> tuple[Load, ...]:
        """The closed loops, or the trace's arrivals."""
        config = self.config
        closed = tuple(Load(concurrency=clients) for clients in config.concurrency)
        return closed or (Load(rate=config.rate),)

    @property
    def command(self) -> str:
        """What makes the same policy again, wherever and with however many jobs."""
        config, default = self.config, RunConfig(trace="")
        words = ["python", "-m", "simulator.tune", config.trace, "--slo", config.slo]
        words += ["--objective", self.objective, "--current", self.current]
        for name in self.tuned_policies:
            words += ["--policy", name]
        if self.config_file:
            words += ["--config", self.config_file]
        if self.server:
            words += ["--server", self.server]
        if self.max_running_requests:
            words += ["--max-running-requests", str(self.max_running_requests)]
        for name in ("cost_model", "acceptance", "rate", "replicas", "seed"):
            if getattr(config, name) != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
        if config.concurrency:
            words += ["--concurrency", ",".join(map(str, config.concurrency))]
        return shlex.join(words)


def load_task(arguments: argparse.Namespace) -> Task:
    """Load and check everything before the first simulated step."""
    config = first_config(arguments.config, arguments.trace)
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
    config = with_flags(
        config,
        policies=(arguments.current, *others(arguments.current, _ALWAYS)),
        **common_flags(arguments),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = load_study(config)
    run = study.runs[0]
    whole = replace(run.scenario, concurrency=None)
    names = tuple(arguments.policy or ())
    return Task(
        config=study.config,
        current=arguments.current,
        config_file=arguments.config,
        server=arguments.server,
        max_running_requests=arguments.max_running_requests,
        objective=arguments.objective,
        tuned_policies=names,
        families=families(names, whole.acceptance.gamma, whole.policy.calibration, run.slo),
        setting=Setting(
            base=whole,
            windows=cut_windows(study.trace, config.concurrency),
            slo=run.slo,
        ),
        incumbents={run.label: run.scenario.policy for run in study.runs},
        warnings=[str(warning.message) for warning in caught],
        acceptance_mismatch=study.acceptance_mismatch,
    )
