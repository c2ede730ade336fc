"""An acceptance profile brought to a stated accepted length and a number of drafted tokens.

The shape, how survival falls from position to position and how confident a drafter is of it, stays
the profile's; the level moves. Knows no benchmark.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from simulator.acceptance.profile import DomainAcceptance, FittedProfile
from simulator.acceptance.published.fit import stored_truth
from simulator.acceptance.published.quadrature import Truth, accepted_length, shifted_to_length


def _resized(values: list[float], gamma: int) -> list[float]:
    """Cut, or continued by the last value."""
    return [*values[:gamma], *[values[-1]] * (gamma - len(values))]


def _first(truth: Truth, verified: int) -> Truth:
    return dataclasses.replace(truth, mean_logit=truth.mean_logit[:verified])


def own_length(profile: FittedProfile, verified: int) -> float:
    """Accepted length of the default domain with ``verified`` tokens of each request."""
    domain = profile.domains[profile.default_domain]
    truth = stored_truth(domain)
    return accepted_length(_first(truth, verified))


@functools.lru_cache(maxsize=256)
def _shift(domain_key: tuple[float, ...], spreads: tuple[float, ...], length: float) -> float:
    request_sd, step_sd, token_sd = spreads
    truth = Truth(
        mean_logit=np.array(domain_key), request_sd=request_sd, step_sd=step_sd, token_sd=token_sd
    )
    return float(shifted_to_length(truth, length).mean_logit[0] - truth.mean_logit[0])


def at_length(
    profile: FittedProfile, *, gamma: int, verified: int, length: float | None
) -> FittedProfile:
    """One domain for all, ``gamma`` positions, ``length`` accepted where ``verified`` are verified.

    Without a length the level stays too. ``ValueError`` for a length that cannot be.
    """
    domain = profile.domains[profile.default_domain]
    names = ("mean_logit", "confidence_bias", "confidence_scale", "confidence_noise")
    lists: dict[str, list[float]] = {name: _resized(getattr(domain, name), gamma) for name in names}
    if length is not None:
        spreads = (domain.request_sd, domain.step_sd, domain.token_sd)
        shift = _shift(tuple(lists["mean_logit"][:verified]), spreads, round(length, 4))
        lists["mean_logit"] = [value + shift for value in lists["mean_logit"]]
    moved: DomainAcceptance = dataclasses.replace(domain, **lists)  # type: ignore[arg-type]
    return dataclasses.replace(
        profile, gamma=gamma, default_domain="all", domains={"all": moved}, achieved={}
    )
