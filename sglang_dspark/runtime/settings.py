"""What an operator sets: a few flags or environment variables, and what they amount to.

Flags are read in the launching process and travel to the others as environment variables, which
are also the way to set them for ``sgl.Engine``. Owns the checks that need no model. Knows nothing
of SGLang.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang_dspark.files import make_folder

if TYPE_CHECKING:  # numba takes a second, and most processes only pass the settings on
    from sglang_dspark.core import CostModel, Planner, PolicyFile

PREFIX = "speculative_dspark_"
HELP = {
    "policy": "How many draft tokens to verify: {policies}, or a policy.json (default: global).",
    "cost_model": "What a step costs on this hardware: a shipped name or a .json file, be it "
    "SGLang's own SPS table; a policy other than {unpriced} needs one.",
    "step_log": "Write every step's state, plan and outcome under this folder (default: off).",
    "step_log_mb": "Megabytes the step log may take; the oldest go first (default: 256).",
    "request_log": "Write every request's lengths, times and prefix hashes, no text, under this "
    "folder, also without speculation (default: off).",
    "request_log_mb": "Megabytes the request log may take; the oldest go first (default: 256).",
}
"""Of each flag; its name is the field's in ``Settings``. ``_Flag`` fills in the policies."""
_MEGABYTES = ("step_log_mb", "request_log_mb")


def flag(name: str) -> str:
    """``--speculative-dspark-cost-model`` for ``cost_model``."""
    return "--" + (PREFIX + name).replace("_", "-")


def variable(name: str) -> str:
    """``SPECULATIVE_DSPARK_COST_MODEL`` for ``cost_model``."""
    return (PREFIX + name).upper()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """As given, unread: ``load`` and ``check`` say whether they make sense."""

    policy: str = "global"
    """A policy's name, with its parameter after a colon, or a file."""
    cost_model: str | None = None
    """A shipped name or a file; None where none was given."""
    step_log: str | None = None
    """Folder; None writes nothing."""
    step_log_mb: int = 256
    request_log: str | None = None
    """Folder; None writes nothing."""
    request_log_mb: int = 256

    def __post_init__(self) -> None:
        for log in ("step_log", "request_log"):
            megabytes = getattr(self, f"{log}_mb")
            if megabytes < 1:
                raise ValueError(
                    f"{flag(log + '_mb')} {megabytes} must be at least 1; leave out {flag(log)} "
                    "for no log"
                )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings in force in this process; a variable that is empty counts as unset."""
        environment = os.environ if environment is None else environment
        given = {name: environment.get(variable(name), "").strip() for name in HELP}
        for name in _MEGABYTES:
            if not (given[name] or "256").isdecimal():
                raise ValueError(
                    f"{variable(name)} {given[name]!r} must be a whole number of megabytes"
                )
        return cls(
            policy=given["policy"] or "global",
            cost_model=given["cost_model"] or None,
            step_log=given["step_log"] or None,
            step_log_mb=int(given["step_log_mb"] or 256),
            request_log=given["request_log"] or None,
            request_log_mb=int(given["request_log_mb"] or 256),
        )


class _Flag(argparse._StoreAction):
    """Names the policies only when asked for help, since numba takes a second. It is the class of
    every flag that stores, since SGLang takes no other from its configuration file."""

    @property
    def help(self) -> str:
        from sglang_dspark.core.policy import choices, policy_forms

        return self._text.format(
            policies=policy_forms(), unpriced=choices(lambda kind: not kind.needs_prices)
        )

    @help.setter
    def help(self, text: str) -> None:
        self._text = text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, in a group of their own; none has a default, so that variables can be seen."""
    group = parser.add_argument_group("DSPARK")
    for name, text in HELP.items():
        kind = int if name in _MEGABYTES else str
        group.add_argument(flag(name), action=_Flag, type=kind, help=text)


def carry(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> None:
    """Write the flags that were given into the environment, over what stood there."""
    for name in HELP:
        value = getattr(arguments, PREFIX + name, None)
        if value is not None:
            environment[variable(name)] = str(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployment:
    """What a server decides with."""

    policy_file: PolicyFile
    cost_model: CostModel
    """The one given, or ``unpriced()``."""
    priced: bool
    """Whether a cost model was given: if not, predicted seconds mean nothing."""
    planner: Planner


def unpriced() -> CostModel:
    """Stands in where no policy asks for a price: every step, whatever its size, is 1 second."""
    from sglang_dspark.core.costs.model import decode_cost_model

    nothing = {"origin": "analytic", "note": "no cost model was given"}
    provenance = dict.fromkeys(("hardware", "model", "dtype", "engine", "date", "command"), "none")
    return decode_cost_model(
        {
            "schema_version": 1,
            "name": "unpriced",
            "kind": "table",
            "provenance": {
                **provenance,
                "origin": "analytic",
                "source": "no cost model was given",
                "tp": 1,
            },
            "valid_range": {
                "tokens": [1, 1 << 24],
                "requests": [1, 1 << 20],
                "context_tokens": [0, 1 << 30],
            },
            "fit_error": None,
            "table": {
                "tokens": [1, 1 << 24],
                "seconds": [1.0, 1.0],
                "between": "linear",
                **nothing,
            },
            "prefill": {"base_s": 0.0, "token_s": 1e-9, "pair_s": 0.0, **nothing},
            "host": {"step_s": 0.0, **nothing},
            "graphs": {"tiers_tokens": [], "beyond_last_s": 0.0, **nothing},
        },
        where="unpriced",
    )


def load(settings: Settings) -> tuple[PolicyFile, CostModel | None]:
    """The policy and the cost model as their files state them; makes the step log's folder.

    ``ValueError`` for what cannot be read, and for a policy that compares prices without any.
    """
    from sglang_dspark.core import load_cost_model, parse_policy
    from sglang_dspark.core.policy import choices

    try:
        policy_file = parse_policy(settings.policy)
    except ValueError as error:
        text = str(error).removeprefix("--policy").lstrip(": ")
        raise ValueError(f"{flag('policy')}: {text}") from None
    cost_model = None
    if settings.cost_model is not None:
        try:
            cost_model = load_cost_model(settings.cost_model)
        except ValueError as error:
            raise ValueError(f"{flag('cost_model')}: {error}") from None
    elif policy_file.policy.needs_prices:
        raise ValueError(
            f"policy {policy_file.policy.name} compares step times and no cost model says them; "
            f"give {flag('cost_model')} a file or a name that dspark list cost-models shows, or "
            f"set {flag('policy')} to {choices(lambda kind: not kind.needs_prices)}"
        )
    if settings.step_log is not None:
        make_folder(settings.step_log)
    return policy_file, cost_model


def check(
    settings: Settings, *, gamma: int, has_confidence_head: bool, max_requests: int
) -> Deployment:
    """What a server with this drafter decides with; ``ValueError`` when the parts do not fit.

    A cost model without a draft block fits every draft length: it has drafting in its forwards.
    """
    from sglang_dspark.core import Planner
    from sglang_dspark.core.corrected_planner import CorrectedPlanner
    from sglang_dspark.core.policy import choices

    policy_file, cost_model = load(settings)
    policy = policy_file.policy
    if policy.reads_confidences and not has_confidence_head:
        raise ValueError(
            f"policy {policy.name} reads confidences and the drafter has no confidence head; set "
            f"{flag('policy')} to {choices(lambda kind: not kind.reads_confidences)}, or train the "
            "drafter with one"
        )
    if cost_model is not None and cost_model.draft is not None and cost_model.draft.gamma != gamma:
        raise ValueError(
            f"cost model {cost_model.name!r} is for draft length {cost_model.draft.gamma}, the "
            f"drafter makes {gamma} tokens; give {flag('cost_model')} one measured for {gamma}"
        )
    correction = policy_file.correction
    if correction.cost and cost_model is None:
        raise ValueError(
            f"{flag('policy')} {settings.policy}: its correction corrects prices and there are "
            f"none; give {flag('cost_model')}, or take cost out of the correction"
        )
    if correction.on and settings.step_log is not None:
        raise ValueError(
            f"{flag('step_log')} writes steps to be replayed, which needs a policy that stays as "
            "its file states it; leave it out, or the policy file's correction"
        )
    priced = cost_model is not None
    cost_model = cost_model if cost_model is not None else unpriced()
    parts: dict[str, Any] = {
        "policy": policy,
        "cost_model": cost_model,
        "gamma": gamma,
        "max_requests": max_requests,
        "calibration": policy_file.calibration,
    }
    try:
        if correction.on:
            planner: Planner = CorrectedPlanner(correction=correction, **parts)
        else:
            planner = Planner(**parts)
    except ValueError as error:
        raise ValueError(f"{flag('policy')} {settings.policy}: {error}") from None
    return Deployment(
        policy_file=policy_file, cost_model=cost_model, priced=priced, planner=planner
    )
