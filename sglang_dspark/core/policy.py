"""The budget policies as data: small frozen parameter sets, and the file they travel in.

What each decides is ``sglang_dspark.core.decide``; this module only names, checks, reads and
writes. A policy file loads unchanged in the server's plugin and in the simulator.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.correction import Correction
from sglang_dspark.files import decode_record, did_you_mean, read_json, refuse_unknown, write_json


@dataclass(frozen=True, kw_only=True)
class NoSpeculation:
    """Plain decoding: one token per request and step, no drafter."""

    name: ClassVar[str] = "none"
    code: ClassVar[int] = 0


@dataclass(frozen=True, kw_only=True)
class FixedLength:
    """Verify the first ``length`` draft tokens of every request, at every load."""

    name: ClassVar[str] = "fixed"
    code: ClassVar[int] = 1
    length: int | None = None
    """Draft tokens to verify; None verifies all gamma of them."""

    def __post_init__(self) -> None:
        if self.length is not None and not 0 <= self.length <= 64:
            raise ValueError(f"length {self.length} must be 0 to 64; leave it out to verify all")


@dataclass(frozen=True, kw_only=True)
class ConfidenceThreshold:
    """Verify up to the first confidence below ``threshold`` (paper 4.3.3)."""

    name: ClassVar[str] = "threshold"
    code: ClassVar[int] = 2
    threshold: float = 0.6
    """In 0..1: 0 verifies everything, 1 next to nothing."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold {self.threshold} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Algorithm 1: admit by descending current survival, stop at the first token without gain."""

    name: ClassVar[str] = "early_stop"
    code: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class GlobalBudget:
    """Section 5.2: the budget from stale survival by global argmax, spent by current survival."""

    name: ClassVar[str] = "global"
    code: ClassVar[int] = 4


@dataclass(frozen=True, kw_only=True)
class SGLangPlanner:
    """What SGLang's built-in planner decides from the table a profiler would give it."""

    name: ClassVar[str] = "sglang"
    code: ClassVar[int] = 5
    table: str = "sps"
    """``sps`` (floor lookup), ``additive`` (linear, clamped), or ``flat`` (none: verify all)."""

    def __post_init__(self) -> None:
        if self.table not in ("sps", "additive", "flat"):
            raise ValueError(f"table {self.table!r} must be sps, additive or flat")


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """``global`` with the prices it leaves out, and drafting only for those who pay for it."""

    name: ClassVar[str] = "goodput"
    code: ClassVar[int] = 6
    min_gain: float = 0.01
    """Predicted relative gain in tokens per second below which it verifies and drafts all."""
    probe_rounds: int = 16
    """Steps after which a request that is not drafted for is drafted for again."""
    ttft_ms: float | None = None
    """Bound on the time to first token; a request that missed it is worth least."""
    tpot_ms: float | None = None
    """Bound on the time per output token: the pace that slack is measured against."""
    slack_weight: float = 0.0
    """How much less the tokens of a request are worth that is far from the pace of ``tpot_ms``,
    ahead or behind; 0: equally."""
    priority_weight: float = 0.0
    """How much less they are worth for each level of priority below the highest; 0: equally."""

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "tpot_ms"):
            bound = getattr(self, name)
            if bound is not None and not (math.isfinite(bound) and bound > 0):
                raise ValueError(f"{name} {bound} must be above 0; leave it out for no bound")
        for name in ("slack_weight", "priority_weight"):
            if not 0 <= getattr(self, name) <= 16:
                raise ValueError(f"{name} {getattr(self, name)} must be between 0 and 16")
        if self.slack_weight > 0 and self.tpot_ms is None:
            raise ValueError(
                f"slack_weight {self.slack_weight} needs tpot_ms to measure slack by; give both"
            )
        if not (math.isfinite(self.min_gain) and 0 <= self.min_gain <= 1):
            raise ValueError(f"min_gain {self.min_gain} must be between 0 and 1")
        if not 2 <= self.probe_rounds <= 10_000:
            raise ValueError(f"probe_rounds {self.probe_rounds} must be 2 to 10000")


Policy: TypeAlias = (
    NoSpeculation
    | FixedLength
    | ConfidenceThreshold
    | EarlyStop
    | GlobalBudget
    | SGLangPlanner
    | Goodput
)

POLICIES: dict[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        NoSpeculation,
        FixedLength,
        ConfidenceThreshold,
        EarlyStop,
        GlobalBudget,
        SGLangPlanner,
        Goodput,
    )
}

_FILE_KEYS = ("schema_version", "policy", "parameters", "calibration", "correction", "note")
_MAIN_PARAMETER = {"fixed": "length", "threshold": "threshold", "sglang": "table"}


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """A policy to deploy, with the calibration it was tuned for."""

    policy: Policy
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    correction: Correction = dataclasses.field(default_factory=Correction)
    """What is learned of prices and confidences while serving; nothing unless the file says so."""
    note: str = ""
    """Where it came from: the command, the trace and the cost model it was tuned on."""


def policy_label(policy: Policy) -> str:
    """The policy as ``--policy`` takes it: ``fixed``, ``fixed:3``, ``threshold:0.6``."""
    key = _MAIN_PARAMETER.get(policy.name)
    value = getattr(policy, key) if key else None
    if key is None or value is None or (policy.name == "sglang" and value == "sps"):
        return policy.name
    return f"{policy.name}:{value}"


def _policy_of_name(name: str, known_as: str) -> type[Policy]:
    if name not in POLICIES:
        hint = did_you_mean(name, POLICIES)
        raise ValueError(f"{known_as}: no policy {name!r}; {hint}known: {', '.join(POLICIES)}")
    return POLICIES[name]


def parse_policy(text: str) -> PolicyFile:
    """A policy from a shipped name with an optional parameter, or from a ``policy.json``.

    ``global``, ``fixed:3``, ``threshold:0.7``, ``sglang:additive``, or a path ending in ``.json``.
    """
    if text.endswith(".json") or "/" in text:
        return load_policy(text)
    name, colon, value = text.partition(":")
    kind = _policy_of_name(name, "--policy")
    if not colon:
        return PolicyFile(policy=kind())
    key = _MAIN_PARAMETER.get(name)
    if key is None:
        raise ValueError(f"--policy {text}: {name} takes no parameter; write just {name}")
    try:
        parameter: Any = {"fixed": int, "threshold": float, "sglang": str}[name](value)
        return PolicyFile(policy=kind(**{key: parameter}))
    except ValueError as error:
        raise ValueError(f"--policy {text}: {key}: {error}") from None


def load_policy(path: str | Path) -> PolicyFile:
    """Read ``{"schema_version": 1, "policy": NAME, "parameters": {...}, "calibration": {...}}``.

    With ``"correction": {"cost": true, "calibration": true}`` it is corrected online.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("policy"), str):
        raise ValueError(f"{path}: a policy file is an object with the key 'policy'")
    version = value.get("schema_version")
    if version is True or version != 1:
        raise ValueError(f"{path}: schema_version {version!r} is unknown; this release reads 1")
    refuse_unknown(value, _FILE_KEYS, str(path))
    note = value.get("note", "")
    if not isinstance(note, str):
        raise ValueError(f"{path}: note {note!r} must be text; put it in quotes")
    kind = _policy_of_name(value["policy"], str(path))
    policy = decode_record(value.get("parameters", {}), kind, where=f"{path}: parameters")
    calibration = decode_record(
        value.get("calibration", {}), Calibration, where=f"{path}: calibration"
    )
    correction = decode_record(value.get("correction", {}), Correction, where=f"{path}: correction")
    return PolicyFile(policy=policy, calibration=calibration, correction=correction, note=note)


def save_policy(path: str | Path, file: PolicyFile) -> None:
    """Write what ``load_policy`` reads; without ``correction`` where nothing is corrected."""
    value: dict[str, Any] = {
        "schema_version": 1,
        "policy": file.policy.name,
        "parameters": dataclasses.asdict(file.policy),
        "calibration": dataclasses.asdict(file.calibration),
        "note": file.note,
    }
    if file.correction != Correction():
        value["correction"] = dataclasses.asdict(file.correction)
    write_json(path, value)
