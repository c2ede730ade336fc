"""Acceptance profiles: what every part of the simulator imports to know what a round accepts.

Owns the way from a name or a path to a profile. The law and the compiled draw are in ``tables``,
the fitted JSON format in ``profile``, Model-Optimizer's in ``speculation``, recorded logs in
``recorded``; ``published`` makes the shipped files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sglang_dspark.files import did_you_mean, read_json
from sglang_dspark.logs.speculation_profile import is_speculation_profile
from simulator.acceptance.profile import read_fitted_profile
from simulator.acceptance.speculation import replayable
from simulator.acceptance.tables import AcceptanceTables

DEFAULT_PROFILE = "dspark-qwen3-4b"

_PROFILES = Path(__file__).parent / "profiles"
_DRAFTERS = {
    "dflash-qwen3-4b": "DFlash for Qwen3-4B",
    "dspark-qwen3-4b": "DSpark for Qwen3-4B",
    "dspark5-v4": "DSpark for DeepSeek-V4-Pro",
    "eagle3-qwen3-4b": "Eagle3 for Qwen3-4B",
    "mtp1": "MTP-1 of DeepSeek-V4-Pro",
}
"""Whose acceptance the shipped profiles are."""


def drafter_of(name: str) -> str | None:
    """Whose acceptance a shipped profile is; None for a file, which does not say."""
    return _DRAFTERS.get(name)


class AcceptanceProfile(Protocol):
    """A source of acceptance tables: fitted (JSON) or recorded (Parquet)."""

    @property
    def name(self) -> str:
        """What results call the profile."""

    @property
    def gamma(self) -> int:
        """Draft positions per round."""

    def tables(self, domain_names: Sequence[str]) -> AcceptanceTables:
        """Dense tables whose rows follow ``domain_names``; the last row serves code -1."""


def shipped_profiles() -> list[str]:
    """The names that ``load_acceptance`` knows without a path, sorted."""
    return sorted(path.stem for path in _PROFILES.glob("*.json"))


def describe_shipped() -> list[dict[str, Any]]:
    """A row on each shipped profile, for ``dspark list``: lengths count the target's own token."""
    profiles = [read_fitted_profile(_PROFILES / f"{name}.json") for name in shipped_profiles()]
    return [
        {
            "name": profile.name,
            "gamma": profile.gamma,
            "drafter": _DRAFTERS[profile.name],
            "accepted_length": {
                domain: round(figures["accepted_length"][0], 2)
                for domain, figures in profile.achieved.items()
            },
        }
        for profile in profiles
    ]


def load_acceptance(name_or_path: str | Path) -> AcceptanceProfile:
    """The profile of a shipped name, a fitted ``.json`` file or a recorded ``.parquet`` log."""
    text = str(name_or_path)
    if text in shipped_profiles():
        return read_fitted_profile(_PROFILES / f"{text}.json")
    path = Path(name_or_path)
    if path.suffix == ".json":
        value = read_json(path)
        if is_speculation_profile(value):
            return replayable(value, path)
        return read_fitted_profile(path)
    if path.suffix == ".parquet":
        from simulator.acceptance.recorded import (
            read_empirical_profile,
        )  # pyarrow is slow to import

        return read_empirical_profile(path)
    hint = did_you_mean(text, shipped_profiles(), show=str)
    raise ValueError(
        f"{text}: no acceptance profile of this name; {hint}shipped: "
        f"{', '.join(shipped_profiles())}; or give the path of a .json profile or .parquet log"
    )
