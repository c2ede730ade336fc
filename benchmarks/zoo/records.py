"""One published serving result: its workload, its points, and what it is predicted from.

Owns the format of ``records/*.json``. Predicts nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.files import decode_record, read_json
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.profile import FittedProfile
from simulator.engine.config import EngineConfig
from simulator.fit.bench.asked import Bench
from simulator.fit.bench.points import Point

FOLDER = Path(__file__).parent / "records"
NONE, FIXED, ADAPTIVE = "none", "fixed", "adaptive"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one run."""

    prompt_tokens: int
    output_tokens: int
    spread: float = 0.0
    """Lengths are uniform from (1 - spread) to (1 + spread) of the mean."""
    requests: int | None = None
    """Of each run; None: ``requests_per_client``."""
    requests_alone: int | None = None
    """Of a run with one client, where it differs."""
    requests_per_client: int | None = None

    def count(self, clients: int) -> int:
        """Requests of a run with so many clients."""
        if clients == 1 and self.requests_alone:
            return self.requests_alone
        if self.requests:
            return self.requests
        assert self.requests_per_client
        return clients * self.requests_per_client


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One policy's runs."""

    policy: str
    """As ``--policy`` names what stands for it."""
    rows: list[list[float | None]]
    """A run each, by the record's columns."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A published result."""

    source: str
    hardware: str
    model: str
    engine: str
    base: str
    """The shipped cost model that it is predicted from."""
    stands_in: bool
    """Whether that is another model's, or of other hardware."""
    gamma: int
    """Tokens drafted."""
    acceptance: str
    """The profile whose shape is taken."""
    accepted_length: float | None
    """Of ``gamma`` verified tokens; None: not stated, or by row."""
    confidence_lag_steps: int
    max_running_requests: int | None
    """None: SGLang's."""
    chunked_prefill_size: int
    enable_mixed_chunk: bool
    """Whether requests decode while prompts run, as vLLM's do."""
    median: bool
    """Whether TPOT and TTFT are medians."""
    workload: Workload
    columns: list[str]
    arms: list[Arm]
    assumed: list[str] = field(default_factory=list)
    """What the record does not say, a sentence each."""

    def bench(self) -> Bench:
        """What its replays have in common."""
        profile = load_acceptance(self.acceptance)
        assert isinstance(profile, FittedProfile)
        return Bench(
            acceptance=profile,
            gamma=self.gamma,
            full_length=self.accepted_length,
            engine=EngineConfig(
                max_running_requests=self.max_running_requests,
                chunked_prefill_size=self.chunked_prefill_size,
                enable_prefix_cache=False,
                enable_mixed_chunk=self.enable_mixed_chunk,
                confidence_lag_steps=self.confidence_lag_steps,
            ),
        )

    def cost_model(self) -> CostModel:
        """The base; drafting as many tokens as the record does, at the base's seconds."""
        model = load_cost_model(self.base)
        if model.draft is not None:
            draft = dataclasses.replace(model.draft, gamma=self.gamma)
            model = dataclasses.replace(model, draft=draft)
        return model

    def points(self) -> list[Point]:
        """All of them, arm by arm."""
        found = []
        for arm in self.arms:
            for i, row in enumerate(arm.rows):
                values: dict[str, Any] = {
                    name: value
                    for name, value in zip(self.columns, row, strict=True)
                    if value is not None
                }
                clients = values["concurrency"] = int(values["concurrency"])
                values.setdefault("prompt_tokens", self.workload.prompt_tokens)
                found.append(
                    Point(
                        where=f"{arm.policy} {i}",
                        policy=arm.policy,
                        requests=self.workload.count(clients),
                        output_tokens=self.workload.output_tokens,
                        spread=self.workload.spread,
                        median=self.median,
                        **values,
                    )
                )
        return found


def kind_of(policy: str) -> str:
    """``none``, ``fixed`` or ``adaptive``."""
    parsed = parse_policy(policy).policy
    if not parsed.drafts:
        return NONE
    return ADAPTIVE if parsed.reads_confidences else FIXED


def read_record(path: Path) -> Record:
    """The record in a file; its name is the file's stem."""
    return decode_record(read_json(path), Record, where=str(path))


def all_records(folder: Path = FOLDER) -> dict[str, Record]:
    """Those of a folder by name, sorted."""
    return {path.stem: read_record(path) for path in sorted(folder.glob("*.json"))}
