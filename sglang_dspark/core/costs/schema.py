"""The parts of a cost-model file: what each field means and which values are refused.

Owns the checks of one part at a time and the sentences they fail with. ``model`` puts the parts
together and turns them into tables; this file knows no arithmetic of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

ORIGINS = ("measured", "published", "composed", "analytic")
BETWEEN = ("staircase", "linear")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not known; use one of {', '.join(choices)}")


def check_least(name: str, value: float, least: float) -> None:
    """``ValueError`` unless ``value`` is finite and at least ``least``."""
    if not (isfinite(value) and value >= least):
        raise ValueError(f"{name} {value:g} must be a finite number of at least {least:g}; mend it")


def check_positive(name: str, value: float) -> None:
    """``ValueError`` unless ``value`` is finite and above zero."""
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} {value:g} must be a finite number above 0; mend it")


def check_probes(probes: Sequence[int], seconds: Sequence[float], *, unit: str, name: str) -> None:
    """The rules of every measured curve.

    At least one probe, sizes whole and strictly increasing from 1, as many times as sizes, times
    finite, not negative and non-decreasing: a bigger step that looks cheaper is noise, and an
    argmax over noise picks the noise.
    """
    if not probes:
        raise ValueError(f"{unit}: no probes; give at least one size")
    if len(probes) != len(seconds):
        raise ValueError(f"{len(probes)} {unit} but {len(seconds)} {name}; give one time per probe")
    if probes[0] < 1:
        raise ValueError(f"{unit} start at {probes[0]}; the smallest size is 1")
    for before, after in pairwise(probes):
        if after <= before:
            raise ValueError(
                f"{unit} must increase strictly: {after} after {before}; sort them and keep one "
                "time per size"
            )
    for size, value in zip(probes, seconds, strict=True):
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"{name} {value:g} at {size} {unit} is no time; give seconds >= 0")
    for i in range(1, len(seconds)):
        if seconds[i] < seconds[i - 1]:
            raise ValueError(
                f"{name} must not decrease: {seconds[i]:g} at {probes[i]} {unit} after "
                f"{seconds[i - 1]:g} at {probes[i - 1]}; measure again or take the running maximum"
            )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model's main curve came from, so that a reader can judge and repeat it."""

    origin: str
    """``measured`` on the hardware by this project's tools, ``published`` by others, ``composed``
    of operators that were timed one by one, or ``analytic``: computed, never timed."""
    source: str
    """The publication, recording or data sheet."""
    hardware: str
    model: str
    dtype: str
    tp: int
    """Tensor-parallel GPUs of one replica."""
    engine: str
    """The serving engine and version that was timed or is imitated."""
    date: str
    """ISO date of the measurement or publication."""
    command: str
    """The command that wrote the file."""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("tp", self.tp, 1)
        for name in ("source", "hardware", "model", "dtype", "engine", "date", "command"):
            if not getattr(self, name).strip():
                raise ValueError(f"provenance {name} is empty; write where the numbers came from")


@dataclass(frozen=True, kw_only=True)
class PricedDrafter:
    """Whose drafting the model prices and whose acceptance belongs to it; since schema 2.

    The target is ``provenance``'s model, the draft length ``draft``'s gamma.
    """

    name: str
    """The drafter, as its publication or its owner calls it."""
    acceptance: str | None = None
    """The acceptance profile of this target and drafter: a shipped name, or a file beside the
    model's. None: there is none of its own."""
    note: str = ""
    """How far the profile is its own, or why there is none."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("drafter name is empty; write whose drafting the model prices")
        if self.acceptance is not None and not self.acceptance.strip():
            raise ValueError(
                "drafter acceptance is empty; name a profile, or leave the key out where there is "
                "none"
            )


@dataclass(frozen=True, kw_only=True)
class ComposedOf:
    """Of a model of origin ``composed``: whose operators, and how much of a step was timed."""

    source: str
    """The package whose tables hold the times."""
    version: str
    """Of the package, and of the engine that was timed."""
    measured_share: float
    """Part of the seconds of one step that the tables hold as measured; the step is in ``note``."""
    not_measured: tuple[str, ...]
    """The other operators of that step, by seconds, each with where its time is from."""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("source", "version"):
            if not getattr(self, name).strip():
                raise ValueError(f"operators {name} is empty; write whose tables were composed")
        if not 0 <= self.measured_share <= 1:
            raise ValueError(
                f"operators measured_share {self.measured_share:g} must lie in [0, 1]; mend it"
            )


@dataclass(frozen=True, kw_only=True)
class ValidRange:
    """The step sizes the model vouches for, both ends included; beyond, it warns and is dear."""

    tokens: tuple[int, int]
    """Tokens in one target forward."""
    requests: tuple[int, int]
    """Requests in one step."""
    context_tokens: tuple[int, int]
    """Context tokens per request."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("requests", 1), ("context_tokens", 0)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(
                    f"valid_range {name} [{low}, {high}] must run upwards from at least {least}; "
                    "mend it"
                )


@dataclass(frozen=True, kw_only=True)
class FitError:
    """How far the model is from the times it was fitted to."""

    median_rel: float
    """Median of |model - time| / time."""
    max_rel: float
    """Largest of them."""
    note: str
    """Which times, and what the error does not cover."""

    def __post_init__(self) -> None:
        check_least("fit_error median_rel", self.median_rel, 0.0)
        check_least("fit_error max_rel", self.max_rel, self.median_rel)


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Kind ``table``: seconds of one target forward at probed token counts."""

    tokens: tuple[int, ...]
    """Probed sizes, strictly increasing."""
    seconds: tuple[float, ...]
    """Time of each, never decreasing."""
    between: str
    """``staircase``: a size costs what the next probe costs, as padding to a captured graph does;
    ``linear``: on the line between its neighbours."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_choice("between", self.between, BETWEEN)
        check_probes(self.tokens, self.seconds, unit="tokens", name="seconds")
        check_positive("the first seconds", self.seconds[0])


@dataclass(frozen=True, kw_only=True)
class AdditiveCost:
    """Kind ``additive``: T(R, M) = bias + alpha(R) + theta(M), linear between probes."""

    bias_s: float
    """Seconds of every forward."""
    requests: tuple[int, ...]
    alpha_s: tuple[float, ...]
    """Seconds added by the number of requests."""
    tokens: tuple[int, ...]
    theta_s: tuple[float, ...]
    """Seconds added by the number of tokens."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_positive("bias_s", self.bias_s)
        check_probes(self.requests, self.alpha_s, unit="requests", name="alpha_s")
        check_probes(self.tokens, self.theta_s, unit="tokens", name="theta_s")


@dataclass(frozen=True, kw_only=True)
class DraftCost:
    """Seconds to draft one block of ``gamma`` tokens for each of R requests."""

    gamma: int
    """The draft length the times hold for."""
    requests: tuple[int, ...]
    seconds: tuple[float, ...]
    between: str
    """As in ``StepTable``."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_choice("between", self.between, BETWEEN)
        check_least("gamma", self.gamma, 1)
        check_probes(self.requests, self.seconds, unit="requests", name="seconds")
        check_positive("the first seconds", self.seconds[0])


@dataclass(frozen=True, kw_only=True)
class PrefillCost:
    """max(floor, base + token * new tokens) + pair * attended pairs."""

    base_s: float
    token_s: float
    pair_s: float
    """Per pair of a new token and one before it: attention's quadratic part."""
    origin: str
    floor_s: float = 0.0
    """Least seconds of a prefill step: reading the weights."""
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_positive("token_s", self.token_s)
        for name in ("base_s", "pair_s", "floor_s"):
            check_least(name, getattr(self, name), 0.0)


@dataclass(frozen=True, kw_only=True)
class HostCost:
    """Host seconds per step that overlap hides nothing of."""

    step_s: float
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("step_s", self.step_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class OverlappedCost:
    """Host seconds per step beside the device's work: a decode step takes at least as long; since
    schema 3."""

    step_s: float
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("overlapped step_s", self.step_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class RaggedCost:
    """The forward of a step whose requests verify different numbers of tokens; since schema 3.

    max(floor, the forward padded to ``tiers_tokens`` + step). Without the block such a step costs
    what a uniform one of as many tokens costs, which is replayed from a graph.
    """

    origin: str
    tiers_tokens: tuple[int, ...] | None = None
    """Token counts with a captured graph for such steps. Absent: those of ``graphs``; empty: none,
    it runs eagerly and unpadded, but for a staircase between a table's probes."""
    floor_s: float = 0.0
    """Least seconds: an eager forward takes what the host needs to launch it."""
    step_s: float = 0.0
    """Seconds added to each."""
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("ragged floor_s", self.floor_s, 0.0)
        check_least("ragged step_s", self.step_s, 0.0)
        if self.tiers_tokens:
            zeros = [0.0] * len(self.tiers_tokens)
            check_probes(self.tiers_tokens, zeros, unit="ragged tiers_tokens", name="seconds")


@dataclass(frozen=True, kw_only=True)
class AdaptiveCost:
    """What deciding the lengths in each step costs beyond a fixed length; since schema 3.

    The host's wait for the confidences, the layout of the batch, and what can no longer be folded
    into a graph: step + request * R seconds of every step in which a policy decides.
    """

    step_s: float
    origin: str
    request_s: float = 0.0
    """Seconds of each request."""
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("adaptive step_s", self.step_s, 0.0)
        check_least("adaptive request_s", self.request_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class PlainCost:
    """The forward of a server that does not speculate, one token of each request; since schema 3.

    The same forward as any other's of as many tokens, but padded to graphs of its own: they were
    captured by requests, not by whole blocks. Without the block such a step is padded like a
    uniform one.
    """

    tiers_tokens: tuple[int, ...]
    """Token counts with a captured graph for such steps, at least one."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        zeros = [0.0] * len(self.tiers_tokens)
        check_probes(self.tiers_tokens, zeros, unit="plain tiers_tokens", name="seconds")


@dataclass(frozen=True, kw_only=True)
class GraphTiers:
    """Token counts with a captured CUDA graph; a step is padded to the next, or runs eagerly."""

    tiers_tokens: tuple[int, ...]
    """Strictly increasing; empty when a table's probes say it all."""
    beyond_last_s: float
    """Seconds added beyond the last tier; 0 where the table has probes there."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("beyond_last_s", self.beyond_last_s, 0.0)
        if self.tiers_tokens:
            zeros = [0.0] * len(self.tiers_tokens)
            check_probes(self.tiers_tokens, zeros, unit="tiers_tokens", name="seconds")


@dataclass(frozen=True, kw_only=True)
class ContextCost:
    """How a forward slows down as the requests' contexts grow."""

    token_s: float
    """Seconds per context token, summed over the requests."""
    reference_tokens: int
    """Context per request at which the forward's times hold."""
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("token_s", self.token_s, 0.0)
        check_least("reference_tokens", self.reference_tokens, 0)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One replica's memory, in bytes over all its GPUs unless a field says otherwise."""

    gpus: int
    gpu_memory_bytes: int
    """Of one GPU."""
    weights_bytes: int
    """Target and drafter."""
    kv_bytes_per_token: int
    """Copies on several GPUs counted each."""
    origin: str
    usable_share: float = 0.88
    """Part of the memory that the server may fill with weights and KV."""
    kv_pool_tokens: int | None = None
    """As the server's log states it; derived from the other fields when absent."""
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        for name in ("gpus", "gpu_memory_bytes", "weights_bytes", "kv_bytes_per_token"):
            check_least(name, getattr(self, name), 1)
        if not 0 < self.usable_share <= 1:
            raise ValueError(f"usable_share {self.usable_share:g} must lie in (0, 1]; mend it")
        if self.kv_pool_tokens is not None:
            check_least("kv_pool_tokens", self.kv_pool_tokens, 1)
        elif self.pool_tokens < 1:
            raise ValueError(
                f"weights of {self.weights_bytes / 1e9:.1f} GB leave no KV memory in "
                f"{self.usable_share:g} of {self.gpus} x {self.gpu_memory_bytes / 1e9:.1f} GB; "
                "use more or larger GPUs"
            )

    @property
    def pool_tokens(self) -> int:
        """KV tokens the replica holds: given, or what the weights leave."""
        if self.kv_pool_tokens is not None:
            return self.kv_pool_tokens
        usable = self.usable_share * self.gpus * self.gpu_memory_bytes
        return int((usable - self.weights_bytes) // self.kv_bytes_per_token)


@dataclass(frozen=True, kw_only=True)
class Watts:
    """Electric power of one replica's GPUs."""

    idle: float
    busy: float
    origin: str
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        check_least("watts idle", self.idle, 0.0)
        check_least("watts busy", self.busy, self.idle)
