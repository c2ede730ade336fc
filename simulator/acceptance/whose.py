"""Whose acceptance: the profile that belongs to a cost model, and what is said of another.

A cost model prices the drafting of one drafter for one target; what another pair accepts is no
answer about them. Owns the default of ``--acceptance`` and the sentence on a mismatch. Draft
lengths are compared where everything is (``simulator.fleet.scenario``).
"""

from __future__ import annotations

from pathlib import Path

from sglang_dspark.core.costs.model import CostModel
from simulator.acceptance.load import DEFAULT_PROFILE, drafter_of, shipped_profiles


def own_profile(model: CostModel, source: str) -> str | None:
    """What ``--acceptance`` calls the profile that ``model`` names; None where it names none.

    ``source`` is the name or path that the model was loaded by: a profile that does not ship is a
    file beside it. ``ValueError`` where that file is missing.
    """
    own = model.acceptance
    if own is None or own in shipped_profiles():
        return own
    path = Path(source).parent / own
    if not path.is_file():
        raise ValueError(
            f"{source}: its acceptance profile {own!r} is neither shipped "
            f"({', '.join(shipped_profiles())}) nor a file beside it; put it there or give "
            "--acceptance"
        )
    return str(path)


def default_profile(model: CostModel, source: str) -> str:
    """What is accepted where nobody says: the cost model's own profile, or the shipped default."""
    return own_profile(model, source) or DEFAULT_PROFILE


def mismatch(model: CostModel, source: str, used: str) -> str | None:
    """The sentence on a profile that is not the cost model's; None where it is, or may be.

    ``used`` is what ``--acceptance`` was. A file says of nobody whose it is: with a model that
    names no profile it is taken to belong to it, as the log of one's own server does.
    """
    own, drafter = model.acceptance, drafter_of(used)
    priced = model.drafter.name if model.drafter else model.provenance.model
    if own is None:
        if drafter is None:
            return None
        belongs = "names no acceptance profile of its own"
    else:
        if used == own or (
            own not in shipped_profiles() and _same(Path(source).parent / own, Path(used))
        ):
            return None
        belongs = f"names acceptance profile {own!r} as its own"
    return (
        f"cost model {model.name!r} prices {priced} and {belongs}; accepted is what "
        f"{used!r} says{f', {drafter}' if drafter else ''}"
    )


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
