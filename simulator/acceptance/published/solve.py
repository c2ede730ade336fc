"""From published figures to the parameters of one domain's acceptance process.

Owns what is fitted to what, and the spreads that are assumed. Knows the figures' format
(``targets``) and no profile. No random numbers; ECE has kinks, though, so that chat's
head may come out different in its third digit on a machine that rounds differently.

Measured by nobody, hence assumed here: how the spread of acceptance divides between requests,
rounds and positions, and how fast a round's state fades. The whole spread is not free: below a
context spread of about 1.4 logits no head, however good, reaches Figure 6's AUC at positions 5 and
7, since a deep position's fate is then mostly its own luck. From 1.4 to 2.2 every figure fits
equally well, so the smallest is taken: the profile then promises no more foresight than is proven.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import least_squares

from simulator.acceptance.published.belief import (
    Belief,
    raw_calibration,
    sequential_temperatures,
    threshold_round,
)
from simulator.acceptance.published.quadrature import (
    FloatArray,
    Truth,
    accepted_length,
    shifted_to_length,
    solve_mean_logits,
)
from simulator.acceptance.published.targets import SweepTarget, Targets

REQUEST_SD = 0.9
"""Logits. Table 1's benchmarks alone differ by 0.3 within a domain; requests differ by more."""
STEP_SD = 1.15
"""Logits."""
TOKEN_SD = 1.0
"""Logits."""
STEP_CORRELATION = 0.7
"""Predictable stretches (boilerplate, quoted text) last about three rounds, ten tokens."""


def truth_for(conditional: FloatArray) -> Truth:
    """The true process with the assumed spreads that shows this conditional acceptance."""
    return solve_mean_logits(conditional, request_sd=REQUEST_SD, step_sd=STEP_SD, token_sd=TOKEN_SD)


def paper_truth(targets: Targets, drafter: str, domain: str) -> Truth:
    """The true process of a drafter in the paper: Figure 2, moved half-way towards Table 1.

    The two differ by up to 1 % in accepted length (Figure 2 is read off a drawing); a common shift
    of the logits, worth at most 0.002 per position, shares the difference between them.
    """
    drawn = truth_for(np.array(targets.conditional_acceptance.values[drafter][domain]))
    printed = float(np.mean(targets.accepted_length.values[drafter][domain]))
    return shifted_to_length(drawn, 0.5 * (printed + accepted_length(drawn)))


def sweep(
    targets: SweepTarget, domain: str, truth: Truth, belief: Belief
) -> tuple[FloatArray, FloatArray]:
    """Tokens (committed, verified) per round at every threshold, the truth first moved to the
    accepted length of the benchmark that the sweep was run on."""
    benchmark = shifted_to_length(truth, targets.tokens_committed[domain][0])
    rounds = [threshold_round(benchmark, belief, t) for t in targets.thresholds]
    committed, verified = np.array(rounds).T
    return committed, verified


def _sweep_error(targets: SweepTarget, domain: str, truth: Truth, belief: Belief) -> FloatArray:
    committed, verified = sweep(targets, domain, truth, belief)
    error: FloatArray = np.concatenate(
        (
            (committed - targets.tokens_committed[domain])[1:] / 0.05,
            (verified - targets.tokens_verified[domain])[1:] / 0.10,
        )
    )
    return error


def _solve(error: Callable[[FloatArray], FloatArray], start: list[float]) -> FloatArray:
    found: FloatArray = least_squares(error, start, diff_step=1e-3, max_nfev=40).x
    return found


def sweep_belief(targets: Targets, domain: str, truth: Truth) -> Belief:
    """One noise, scale and bias for all positions, fitted to the domain's threshold sweep."""
    gamma = len(truth.mean_logit)

    def belief(x: FloatArray) -> Belief:
        return Belief(
            noise=np.full(gamma, np.exp(x[0])),
            scale=np.full(gamma, np.exp(x[1])),
            bias=np.full(gamma, x[2]),
        )

    def error(x: FloatArray) -> FloatArray:
        return _sweep_error(targets.threshold_sweep, domain, truth, belief(x))

    return belief(_solve(error, [0.0, 0.0, 0.3]))


def calibrated_belief(targets: Targets, truth: Truth) -> Belief:
    """Chat: noise, scale and bias at the positions of Figure 6, linear in between.

    First to AUC and raw ECE, loosely to the ECE after scaling (which only noise and bias move: a
    temperature undoes the scale), faintly to the threshold sweep, whose benchmark is another one.
    """
    goal = targets.calibration
    at = np.array(goal.positions) - 1
    knots = len(at)
    positions = np.arange(len(truth.mean_logit))

    def belief(x: FloatArray) -> Belief:
        noise, scale, bias = np.split(x, [knots, 2 * knots])
        return Belief(
            noise=np.exp(np.interp(positions, at, noise)),
            scale=np.exp(np.interp(positions, at, scale)),
            bias=np.interp(positions, at, bias),
        )

    def error(x: FloatArray) -> FloatArray:
        raw = raw_calibration(truth, belief(x))
        scaled = sequential_temperatures(truth, belief(x))
        return np.concatenate(
            (
                (raw.auc[at] - goal.auc) / 0.003,
                (100 * raw.ece[at] - goal.ece_raw_pct) / 0.3,
                (100 * scaled.ece[at] - goal.ece_sts_pct) / 0.8,
                0.3 * _sweep_error(targets.threshold_sweep, "chat", truth, belief(x)),
                0.1 * x[knots:],
                0.2 * np.diff(x[:knots]),
            )
        )

    start = [*np.log([0.7, 2.0, 0.7, 0.5]), *np.log([1.2, 0.6, 0.8, 0.8]), 0.0, 1.0, 0.4, 0.4]
    return belief(_solve(error, start))


def golden_truth(targets: Targets, lengths: list[float], domain: str) -> Truth:
    """Conditional acceptance from accepted lengths by number of draft tokens (coding); the other
    domains moved by the logit differences that the paper's DSpark shows between them."""
    survival = np.diff([1.0, *lengths])
    code = survival / np.concatenate(([1.0], survival[:-1]))
    paper = targets.conditional_acceptance.values["DSpark"]
    gamma = len(lengths)
    there, here = (np.array(paper[name][:gamma]) for name in (domain, "code"))
    logit = np.log(code / (1 - code)) + np.log(there / (1 - there)) - np.log(here / (1 - here))
    return truth_for(1 / (1 + np.exp(-logit)))
