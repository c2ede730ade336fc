"""The budget policies as data: what each is, its parameters, and the file they travel in.

A policy is one place: its dataclass here. Its fields are its parameters, its class variables the
facts about it, and whatever else lists policies asks them for these facts: the server's settings,
the simulator, the tuner, the help. One that decides as another does is a dataclass with that one's
``code``; a new decision is a branch of ``sglang_dspark.core.decide`` besides. A policy file loads
unchanged in the server's plugin and in the simulator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from sglang_dspark.core import tables
from sglang_dspark.core.axis import TEMPERATURE, Axis
from sglang_dspark.core.calibration import Calibration, load_calibration
from sglang_dspark.core.correction import Correction
from sglang_dspark.core.costs import sglang_tables
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable
from sglang_dspark.files import decode_record, did_you_mean, read_json, refuse_unknown, write_json


class Main(NamedTuple):
    """The parameter that ``--policy NAME:VALUE`` sets."""

    name: str
    read: Callable[[str], Any]
    """From VALUE; ``ValueError`` where it makes no sense."""
    unsaid: Any = None
    """Its value under NAME alone, where a label may leave it out."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What every policy says of itself. Facts have the values that promise least."""

    name: ClassVar[str]
    """As ``--policy`` and policy files call it."""
    summary: ClassVar[str]
    """What it verifies, in a line of help."""
    code: ClassVar[int]
    """Its branch in ``decide``: one of the names in ``sglang_dspark.core.tables``."""
    main: ClassVar[Main | None] = None
    drafts: ClassVar[bool] = True
    """Whether anything is ever drafted."""
    reads_confidences: ClassVar[bool] = True
    """Whether the drafter needs a confidence head; if not, everyone has the same length."""
    needs_prices: ClassVar[bool] = True
    """Whether it compares step times: a server needs a cost model."""
    decides_early: ClassVar[bool] = False
    """Whether the number of tokens is known before they are drafted, from old confidences."""
    chooses_drafts: ClassVar[bool] = False
    """Whether it looks around itself (``Circumstances``), weighs requests, chooses for whom the
    next step drafts, and takes notes."""
    as_sglang: ClassVar[bool] = False
    """Whether it decides as SGLang's planner does: survivals in its float32 arithmetic, nothing
    calibrated or corrected, lengths by its own operator."""
    axes: ClassVar[tuple[Axis, ...]] = ()
    """What the tuner varies: parameters, and ``TEMPERATURE``."""
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Parameters that the tuner holds, a search for each."""
    from_slo: ClassVar[tuple[str, ...]] = ()
    """Parameters that the tuner takes from the SLO's bounds of the same name."""

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        """Its parameters as fields of ``PolicyTables``; those left out are neutral.

        ``ValueError`` for what does not fit the draft length.
        """
        return {}


P = TypeVar("P", bound=Policy)
POLICIES: dict[str, type[Policy]] = {}
"""By name, in the order in which they are shown."""


def register(kind: type[P]) -> type[P]:
    """Decorator: adds a policy to ``POLICIES``."""
    if kind.name in POLICIES:
        raise ValueError(f"there is a policy {kind.name!r} already; give this one another name")
    POLICIES[kind.name] = kind
    return kind


@register
@dataclass(frozen=True, kw_only=True)
class NoSpeculation(Policy):
    """Plain decoding: one token per request and step, no drafter."""

    name = "none"
    summary = "plain decoding, no draft"
    code = tables.NONE
    drafts = False
    reads_confidences = False
    needs_prices = False
    decides_early = True

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        """No draft tokens."""
        return {"length": 0}


@register
@dataclass(frozen=True, kw_only=True)
class FixedLength(Policy):
    """Verify the first ``length`` draft tokens of every request, at every load."""

    name = "fixed"
    summary = "the first LENGTH draft tokens of every request; all of them without it"
    code = tables.FIXED
    main = Main("length", int)
    reads_confidences = False
    needs_prices = False
    decides_early = True
    axes = (Axis(name="length", low=1, high=64, whole=True, drafts=True),)

    length: int | None = None
    """Draft tokens to verify; None verifies all gamma of them."""

    def __post_init__(self) -> None:
        if self.length is not None and not 0 <= self.length <= 64:
            raise ValueError(f"length {self.length} must be 0 to 64; leave it out to verify all")

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        """The length, if the drafter makes so many tokens."""
        if self.length is None:
            return {}
        if self.length > gamma:
            raise ValueError(
                f"policy {self.name}:{self.length} exceeds the draft length {gamma}; lower it"
            )
        return {"length": self.length}


@register
@dataclass(frozen=True, kw_only=True)
class ConfidenceThreshold(Policy):
    """Verify up to the first confidence below ``threshold`` (paper 4.3.3)."""

    name = "threshold"
    summary = "every request up to its first confidence below THRESHOLD"
    code = tables.THRESHOLD
    main = Main("threshold", float)
    needs_prices = False
    # A temperature would only move the threshold.
    axes = (Axis(name="threshold", low=0.02, high=0.98),)

    threshold: float = 0.6
    """In 0..1: 0 verifies everything, 1 next to nothing."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold {self.threshold} must be between 0 and 1")

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": self.threshold}


@register
@dataclass(frozen=True, kw_only=True)
class EarlyStop(Policy):
    """Algorithm 1: admit by descending current survival, stop at the first token without gain."""

    name = "early_stop"
    summary = "the surest tokens, up to the first that gains nothing (DSpark's Algorithm 1)"
    code = tables.EARLY_STOP
    axes = (TEMPERATURE,)


DEFAULT_POLICY = "global"
"""What a server runs that was told nothing else; ``runtime.settings`` says the same."""


@register
@dataclass(frozen=True, kw_only=True)
class GlobalBudget(Policy):
    """Section 5.2: the budget from stale survival by global argmax, spent by current survival."""

    name = "global"
    summary = "the surest tokens, as many as make the most tokens per second"
    code = tables.GLOBAL
    decides_early = True
    axes = (TEMPERATURE,)


@register
@dataclass(frozen=True, kw_only=True)
class SGLangPlanner(Policy):
    """What SGLang's built-in planner decides from the table a profiler would give it."""

    name = "sglang"
    summary = "what SGLang's own planner decides with an sps, additive or flat TABLE"
    code = tables.SGLANG
    main = Main("table", str, unsaid="sps")
    decides_early = True
    as_sglang = True
    axes = (TEMPERATURE,)
    variants = ({"table": "sps"}, {"table": "additive"})

    table: str = "sps"
    """What SGLang is given: ``sps`` (floor lookup), ``additive`` (linear, clamped), or ``flat``
    (nothing: verify all). Prices read from SGLang's own file have that file as ``sps``."""

    def __post_init__(self) -> None:
        if self.table not in ("sps", "additive", "flat"):
            raise ValueError(f"table {self.table!r} must be sps, additive or flat")

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        """The table, dense."""
        max_tokens = max_requests * (gamma + 1)
        given = self.given(cost_model, gamma)
        if given is None:
            return {"table": tables.TABLE_FLAT}
        if isinstance(given, SpsTable):
            return {"table": tables.TABLE_SPS, "steps_per_s": given.dense(max_tokens)}
        return {
            "table": tables.TABLE_ADDITIVE,
            "alpha_s": given.bias_seconds + given.dense_alpha(max_requests),
            "theta_s": given.dense_theta(max_tokens),
        }

    def given(self, cost_model: CostModel, gamma: int) -> SpsTable | SpsAdditiveTable | None:
        """The table that SGLang would be started with; None: without one."""
        if self.table == "flat":
            return None
        if self.table == "additive":
            return sglang_tables.additive_table(cost_model)
        return sglang_tables.sps_table(cost_model, gamma)


@register
@dataclass(frozen=True, kw_only=True)
class Goodput(Policy):
    """``global`` with the prices it leaves out, and drafting only for those who pay for it."""

    name = "goodput"
    summary = "as global, at the prices it leaves out, drafting for those who pay for it"
    code = tables.GOODPUT
    decides_early = True
    chooses_drafts = True
    axes = (
        Axis(name="min_gain", low=0.001, high=0.5, log=True),
        Axis(name="probe_rounds", low=2, high=256, log=True, whole=True),
        Axis(name="slack_weight", low=0.0, high=4.0),
        TEMPERATURE,
    )
    from_slo = ("ttft_ms", "tpot_ms")

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

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        """The parameters, in seconds."""
        return {
            "min_gain": self.min_gain,
            "probe_rounds": self.probe_rounds,
            "ttft_s": math.inf if self.ttft_ms is None else self.ttft_ms / 1e3,
            "tpot_s": math.inf if self.tpot_ms is None else self.tpot_ms / 1e3,
            "slack_weight": self.slack_weight,
            "priority_weight": self.priority_weight,
        }


def policy_forms() -> str:
    """Every policy as ``--policy`` takes it: ``none, fixed[:LENGTH], ...``."""
    return ", ".join(
        f"{name}[:{kind.main.name.upper()}]" if kind.main else name
        for name, kind in POLICIES.items()
    )


def choices(fits: Callable[[type[Policy]], bool]) -> str:
    """The policies that fit, for a sentence's remedy: ``none, fixed or threshold:0.6``."""
    *most, last = (policy_label(kind()) for kind in POLICIES.values() if fits(kind))
    return f"{', '.join(most)} or {last}" if most else last


_FILE_KEYS = ("schema_version", "policy", "parameters", "calibration", "correction", "note")


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
    main = policy.main
    if main is None or getattr(policy, main.name) == main.unsaid:
        return policy.name
    return f"{policy.name}:{getattr(policy, main.name)}"


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
    if kind.main is None:
        raise ValueError(f"--policy {text}: {name} takes no parameter; write just {name}")
    try:
        parameter = kind.main.read(value)
        return PolicyFile(policy=dataclasses.replace(kind(), **{kind.main.name: parameter}))
    except ValueError as error:
        raise ValueError(f"--policy {text}: {kind.main.name}: {error}") from None


def load_policy(path: str | Path) -> PolicyFile:
    """Read ``{"schema_version": 1, "policy": NAME, "parameters": {...}, "calibration": {...}}``.

    ``"calibration": "sts.json"`` names a file of its own instead, be it SGLang's STS file, from the
    policy file's folder. With ``"correction": {"cost": true, "calibration": true}`` it is
    corrected online.
    """
    value = read_json(path)
    if isinstance(value, dict) and "policy" not in value and "temperatures" in value:
        raise ValueError(
            f"{path}: holds a calibration and no policy; write a policy file that names it: "
            f'{{"schema_version": 1, "policy": "global", "calibration": "{Path(path).name}"}}'
        )
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
    given = value.get("calibration", {})
    calibration = (
        load_calibration(Path(path).parent / given)
        if isinstance(given, str)
        else decode_record(given, Calibration, where=f"{path}: calibration")
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
