"""The figures that an acceptance process produces, by quadrature: no random number, no simulation.

Owns what follows from the true process alone: conditional acceptance, accepted length, and the
mean logits that meet a given conditional acceptance. Knows no confidence (``belief``),
no published figure and no file.

All figures are averages over rounds as a simulation of fixed output lengths weighs them: a request
of difficulty D takes a number of rounds proportional to 1 / (its accepted length), so hard requests
count for more. The end of a request (its last round may overshoot) is left out.
A round's request and state act through their sum t, its context, alone; given t the positions are
independent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

FloatArray = npt.NDArray[np.float64]

_CONTEXT_NODES = 41
LUCK_NODES = 32
"""Nodes over a position's own luck."""
REACH = 5.0
"""Standard deviations that the trapezoid rules cover."""


def normal_nodes(count: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights of a trapezoid rule for N(0, 1); converges exponentially in ``count``."""
    nodes = np.linspace(-REACH, REACH, count)
    weights = np.exp(-0.5 * nodes * nodes)
    return nodes, weights / weights.sum()


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The true acceptance process of one domain: what ``DomainAcceptance`` holds of it."""

    mean_logit: FloatArray
    """[K]"""
    request_sd: float
    """Logits."""
    step_sd: float
    """Logits."""
    token_sd: float
    """Logits."""

    def accept(self, context: FloatArray, k: int) -> FloatArray:
        """P(token k accepted | its prefix was, request and round add up to ``context``)."""
        luck, weights = normal_nodes(LUCK_NODES)
        logits = self.mean_logit[k] + context[..., None] + self.token_sd * luck
        probability: FloatArray = expit(logits) @ weights
        return probability

    def survival(self, context: FloatArray) -> FloatArray:
        """[K, ...] P(the first k + 1 tokens are accepted | context)."""
        accept = [self.accept(context, k) for k in range(len(self.mean_logit))]
        return np.cumprod(np.array(accept), axis=0, dtype=np.float64)


def context_law(truth: Truth, length_of: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
    """Nodes t and weights of a round's context, rounds weighted 1 / (accepted length).

    ``length_of`` [nodes] replaces the accepted length given t, e.g. where verification is cut.
    """
    nodes, plain = normal_nodes(_CONTEXT_NODES)
    spread = np.hypot(truth.request_sd, truth.step_sd)
    context = spread * nodes
    if truth.request_sd == 0.0:
        return context, plain
    length = 1.0 + truth.survival(context).sum(axis=0) if length_of is None else length_of
    state, state_weights = normal_nodes(_CONTEXT_NODES)

    def rounds_of(difficulty: FloatArray) -> FloatArray:
        # Accepted length of a difficulty: the mean over the rounds' states.
        at = truth.request_sd * difficulty[..., None] + truth.step_sd * state
        rounds: FloatArray = 1.0 / (np.interp(at, context, length) @ state_weights)
        return rounds

    share = truth.request_sd / spread
    given = share * nodes[:, None] + np.sqrt(1.0 - share * share) * state
    weights = plain * (rounds_of(given) @ state_weights)
    return context, weights / weights.sum()


def conditional_acceptance(truth: Truth) -> FloatArray:
    """[K] share of rounds that accept token k among those that accepted all before it."""
    context, weights = context_law(truth)
    reached = np.concatenate(([1.0], truth.survival(context) @ weights))
    return reached[1:] / reached[:-1]


def accepted_length(truth: Truth) -> float:
    """Mean tokens committed per round, bonus included, every draft token verified."""
    context, weights = context_law(truth)
    return float(1.0 + (truth.survival(context) @ weights).sum())


def solve_mean_logits(
    target: FloatArray, *, request_sd: float, step_sd: float, token_sd: float
) -> Truth:
    """The truth whose conditional acceptance is ``target`` [K] to 1e-9.

    Position by position by Newton's rule; around it a fixed point, since every mean moves the
    rounds' weights.
    """
    mean = np.log(target / (1.0 - target))
    for _ in range(200):
        truth = Truth(mean_logit=mean, request_sd=request_sd, step_sd=step_sd, token_sd=token_sd)
        error = conditional_acceptance(truth) - target
        if np.abs(error).max() < 1e-9:
            return truth
        context, alive = context_law(truth)
        new = mean.copy()
        for k, goal in enumerate(target):
            alive = alive / alive.sum()
            for _ in range(50):
                moved = Truth(
                    mean_logit=new, request_sd=request_sd, step_sd=step_sd, token_sd=token_sd
                )
                accept = moved.accept(context, k)
                slope = (moved.accept(context + 1e-5, k) - accept) @ alive / 1e-5
                move = (accept @ alive - goal) / slope
                new[k] -= np.clip(move, -2.0, 2.0)
                if abs(move) < 1e-12:
                    break
            alive = alive * moved.accept(context, k)
        mean = new
    raise ValueError(f"conditional acceptance {target.tolist()} was not reached; lower the spreads")


def shifted_to_length(truth: Truth, length: float) -> Truth:
    """The truth with all mean logits moved alike so that the accepted length is ``length``."""
    longest = 1 + len(truth.mean_logit)
    if not 1.0 < length < longest:
        raise ValueError(f"accepted length {length:g} cannot be; it must lie inside (1, {longest})")

    def moved(shift: float) -> Truth:
        return replace(truth, mean_logit=truth.mean_logit + shift)

    shift = brentq(lambda s: accepted_length(moved(s)) - length, -30.0, 30.0, xtol=1e-9)
    return moved(shift)
