"""The process that decides what a verify round would accept and what the drafter believed of it.

Owns the compiled draw and the dense tables it reads. Knows no files, no policy and no clock.
Truth and prediction are kept apart: nothing that only changes the prediction can move an outcome.

Law of the fitted kind. Request r has a difficulty D ~ N(0, 1); its rounds s carry a state S_s, a
stationary AR(1) with correlation rho; position k of a round has E_k, N_k ~ N(0, 1) and a uniform:
    true logit        eta_k = mean_k + request_sd D + step_sd S_s + token_sd E_k
    token k accepted, given its prefix was, with probability sigmoid(eta_k)
    raw confidence    z_k = bias_k + scale_k (eta_k + noise_k N_k)
D is keyed by (seed, r); the innovations of S, E_k, N_k and the uniforms by (seed, r, s).

Law of the empirical kind: request r replays one recorded request of its domain, picked by
hash(seed, r) among those nearest to it in output tokens, since long answers are not accepted like
short ones. Its round at output token p goes on in the recorded round that covers p: a policy that
verifies what the recorded one did meets the same rounds, and where one cut a run short the next
round has what is left of it. That round is drafted afresh and may pass the token at which the
recorded run ended, and then has the following round's run as well. A run that only the block's end
stopped goes on as it does at the last position; of a rejected token no log shows it, and one of two
is passed. Beyond the record's end it starts over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.compiled import compiled, inlined
from simulator.rng import NORMAL_BITS, normal, round_key, uniform, word

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_GAMMA = 15
"""Longest draft block: what SGLang's verify kernels are captured for."""

KIND_FITTED = 0
KIND_EMPIRICAL = 1

_REQUEST_STEP = -1  # the key of what belongs to a request and to none of its rounds
_STATE_STREAM = MAX_GAMMA  # streams 0..14 belong to the positions
_SECOND_NORMAL = np.uint64(NORMAL_BITS)

_ONE = np.uint64(1)
_NEAR = 16
_PASSES = 0.5
"""Assumed; the digital twin's ``tokens_per_request_step``, measured and predicted, checks it."""

# The functions that take AcceptanceTables are inlined by force: handing the tuple to a real call
# copies some 120 words, which costs four times what the draw itself does.

_SIGMOID_REACH = 16.0
_SIGMOID_PER_UNIT = 64.0


class AcceptanceTables(NamedTuple):
    """What the compiled draw reads. First index: the request's domain code in its trace.

    Rows 0..n-1 are the trace's domain names in order; the last row serves code -1 (no domain).
    K = gamma. Arrays of the kind not in use have length zero where they can.
    """

    kind: int
    """KIND_FITTED or KIND_EMPIRICAL."""
    gamma: int
    """K: draft positions per round, 1..MAX_GAMMA."""
    mean_logit: FloatArray
    """[rows, K] mean of the true logit at each position."""
    request_sd: FloatArray
    """[rows] weight of the request's difficulty, logits."""
    step_sd: FloatArray
    """[rows] weight of the round's state, logits."""
    step_correlation: FloatArray
    """[rows] correlation of the state of neighbouring rounds, -1 < rho < 1."""
    token_sd: FloatArray
    """[rows] weight of the position's own luck, logits."""
    confidence_bias: FloatArray
    """[rows, K] added to every raw confidence logit."""
    confidence_scale: FloatArray
    """[rows, K] factor of every raw confidence logit; above 1 the head is over-confident."""
    confidence_noise: FloatArray
    """[rows, K] sd of what the head cannot see, in units of the true logit."""
    normal: FloatArray
    """[2**NORMAL_BITS] quantiles of N(0, 1)."""
    sigmoid: FloatArray
    """[2 * reach * per_unit + 2] the logistic function on an even grid."""
    log_logits: FloatArray
    """[rounds, K] recorded raw confidence logits, grouped by recorded request."""
    log_accepted: IntArray
    """[rounds] recorded number of accepted draft tokens, 0..K."""
    log_first_round: IntArray
    """[recorded requests + 1] where each recorded request's rounds begin."""
    log_request: IntArray
    """Each row's recorded requests, those of row 0 first, by ``log_tokens``."""
    log_tokens: IntArray
    """Output tokens of each of ``log_request``."""
    log_position: IntArray
    """[rounds] output tokens, the prefill's not counted, before each round; 0 for the first."""
    log_first_request: IntArray
    """[rows + 1] where each row's part of ``log_request`` begins."""
    log_last_position: float
    """Probability that the last position of a block is accepted, given those before it were."""


def sigmoid_table() -> FloatArray:
    """The logistic function at steps of 1/64 over +-16: read linearly it is off by < 3e-6."""
    cells = int(2 * _SIGMOID_REACH * _SIGMOID_PER_UNIT)
    grid = np.arange(cells + 2) / _SIGMOID_PER_UNIT - _SIGMOID_REACH
    table: FloatArray = 1.0 / (1.0 + np.exp(-grid))
    return table


@compiled
def acceptance_probability(sigmoid: FloatArray, logit: float) -> float:
    """sigmoid(logit) from the table: arithmetic only, so the same bits on every machine."""
    place = (min(max(logit, -_SIGMOID_REACH), _SIGMOID_REACH) + _SIGMOID_REACH) * _SIGMOID_PER_UNIT
    cell = int(place)
    at = np.uint64(cell)  # a signed index may count from the end, which costs instructions
    return sigmoid[at] + (place - cell) * (sigmoid[at + _ONE] - sigmoid[at])


@inlined
def begin_request(
    tables: AcceptanceTables, seed: int, request: int, domain: int, output_tokens: int
) -> tuple[float, float]:
    """(difficulty, step state before round 0) of a request; ``domain`` -1 means none given.

    Of the empirical kind the difficulty is the number of the recorded request to replay.
    """
    bits = word(round_key(seed, request, _REQUEST_STEP), 0)
    if tables.kind == KIND_EMPIRICAL:
        row = domain if domain >= 0 else tables.request_sd.shape[0] - 1
        first, end = tables.log_first_request[row], tables.log_first_request[row + 1]
        low, high = nearest_records(tables.log_tokens[first:end], output_tokens)
        place = first + low + int(uniform(bits) * (high - low))
        return float(tables.log_request[place]), 0.0
    return normal(tables.normal, bits), normal(tables.normal, bits >> _SECOND_NORMAL)


@compiled
def nearest_records(tokens: IntArray, output_tokens: int) -> tuple[int, int]:
    """[low, high) of ascending ``tokens`` that count as near: all that are equal, and on both
    sides as many more as make 16. No more: a round that reaches the end of an answer seldom goes
    on, and only in a record of the same length does that round come when the answer ends."""
    count = tokens.size
    low = _first_from(tokens, output_tokens)
    high = _first_from(tokens, output_tokens + 1)
    wanted = min(count, _NEAR)
    more = max(0, wanted - (high - low))
    low = max(0, min(low - more // 2, count - wanted))
    return low, max(high, low + wanted)


@compiled
def _first_from(ascending: IntArray, value: int) -> int:
    """The first place that holds ``value`` or more; the size where none does."""
    low, high = 0, ascending.size
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def draw_round(
    tables: AcceptanceTables,
    seed: int,
    request: int,
    step: int,
    domain: int,
    difficulty: float,
    step_state: float,
    position: int,
    logits_out: FloatArray,
) -> tuple[int, float]:
    """(accepted, step state after this round) of round ``step`` (0, 1, ...) of a request.

    ``position`` is the number of its output tokens before the round, the prefill's not counted.
    accepted in 0..K is how many leading tokens of the full block the target would accept; a round
    verified to length l commits min(l, accepted) of them. ``logits_out[0:K]`` receives the raw
    confidence logits of all positions. Rounds of one request are drawn in order, each handed the
    state that the one before returned.
    """
    gamma = tables.gamma
    row = domain if domain >= 0 else tables.request_sd.shape[0] - 1
    if tables.kind == KIND_EMPIRICAL:
        return _replay_round(
            tables, seed, request, int(difficulty), position, logits_out
        ), step_state
    # Outcomes are counted without a branch: whether a token is accepted is what a processor
    # predicts worst.
    quantiles, sigmoid = tables.normal, tables.sigmoid
    mean, noise = tables.mean_logit, tables.confidence_noise
    bias, scale = tables.confidence_bias, tables.confidence_scale
    token_sd = tables.token_sd[row]
    key = round_key(seed, request, step)
    rho = tables.step_correlation[row]
    innovation = normal(quantiles, word(key, _STATE_STREAM))
    state = rho * step_state + np.sqrt(1.0 - rho * rho) * innovation
    context = tables.request_sd[row] * difficulty + tables.step_sd[row] * state
    accepted = 0
    alive = 1
    for k in range(gamma):
        bits = word(key, k)
        logit = mean[row, k] + context + token_sd * normal(quantiles, bits)
        seen = logit + noise[row, k] * normal(quantiles, bits >> _SECOND_NORMAL)
        logits_out[k] = bias[row, k] + scale[row, k] * seen
        alive &= int(uniform(bits) < acceptance_probability(sigmoid, logit))
        accepted += alive
    return accepted, state


@inlined
def _replay_round(
    tables: AcceptanceTables,
    seed: int,
    request: int,
    recorded: int,
    position: int,
    logits_out: FloatArray,
) -> int:
    first, end = tables.log_first_round[recorded], tables.log_first_round[recorded + 1]
    length = tables.log_position[end - 1] + tables.log_accepted[end - 1] + 1
    wanted = position % length
    low, high = first, end
    while high - low > 1:
        middle = (low + high) // 2
        if tables.log_position[middle] <= wanted:
            low = middle
        else:
            high = middle
    inside = max(wanted - tables.log_position[low], 0)
    if inside > tables.log_accepted[low] and low + 1 < end:
        low, inside = low + 1, 0  # the rounds in between were not recorded
    left = max(tables.log_accepted[low] - inside, 0)
    luck = uniform(word(round_key(seed, request, position), _STATE_STREAM))
    gamma = tables.gamma
    chance = tables.log_last_position if tables.log_accepted[low] == gamma else _PASSES
    passes = inside > 0 and low + 1 < end and luck < chance
    for k in range(gamma):
        if passes and k > left:
            logits_out[k] = tables.log_logits[low + 1, k - left - 1]
        else:
            logits_out[k] = tables.log_logits[low, min(inside + k, gamma - 1)]
    run = left + 1 + tables.log_accepted[low + 1] if passes else left
    return min(run, gamma)
