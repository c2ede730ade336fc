"""Online correction: bounded, causal, without dead spots, and lossless by exact enumeration."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core import correction as module
from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.corrected_planner import CorrectedPlanner
from sglang_dspark.core.correction import (
    Correction,
    Evidence,
    Outcome,
    corrected_costs,
    explored_row,
    factors,
    learn,
    nothing_learned,
)
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.sglang_files import SpsTable
from sglang_dspark.core.costs.sglang_tables import from_sps
from sglang_dspark.core.costs.tables import (
    UNIFORM,
    CostTables,
    decode_step_seconds,
    draft_seconds,
    verify_seconds,
)
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import (
    POLICIES,
    ConfidenceThreshold,
    EarlyStop,
    FixedLength,
    GlobalBudget,
    NoSpeculation,
    Policy,
    SGLangPlanner,
)
from sglang_dspark.core.state import BatchState, Floats

GAMMA = 4
MODEL = load_cost_model("h200-qwen3-8b-analytic")
TABLES = MODEL.tables(64 * (GAMMA + 1), 64)._replace(host_s=2e-4)
UNIT = (np.ones(GAMMA), np.zeros(GAMMA))
BOTH = Correction(cost=True, calibration=True, half_life_steps=50.0)


def predicted_seconds(costs: CostTables, outcome: Outcome) -> Floats:
    """[3] the prices of the step's parts as it was run, its true context included."""
    rows = outcome.lengths.size
    drafted = int(np.count_nonzero(outcome.logits[:, 0] != -np.inf))
    context = float(outcome.context_tokens)
    verify_s = verify_seconds(costs, outcome.computed_tokens, rows, context, UNIFORM)
    return np.array([draft_seconds(costs, drafted), verify_s, costs.host_s])


def outcome_of(logits: Any, lengths: Any, accepted: Any, **fields: Any) -> Outcome:
    logits = np.asarray(logits, dtype=np.float64)
    lengths = np.asarray(lengths, dtype=np.int64)
    plain = Outcome(
        logits=logits,
        lengths=lengths,
        accepted=np.asarray(accepted, dtype=np.int64),
        context_tokens=1000 * len(logits),
        computed_tokens=len(logits) + int(lengths.sum()),
        seconds=(0.0, 0.0, 0.0),
    )
    priced = predicted_seconds(TABLES, plain)
    ratio = np.asarray(fields.pop("ratio", 1.0))
    return dataclasses.replace(plain, **{"seconds": tuple(priced * ratio), **fields})


def drawn(rng: np.random.Generator, rows: int, lengths: Any, *, shift: Any = 0.0) -> Outcome:
    """Acceptance drawn from sigmoid(z + shift)."""
    logits = rng.normal(0.8, 1.0, (rows, GAMMA))
    passed = rng.random((rows, GAMMA)) < 1 / (1 + np.exp(-logits - shift))
    run = np.cumprod(passed, axis=1).sum(axis=1)
    lengths = np.broadcast_to(lengths, rows)
    return outcome_of(logits, lengths, np.minimum(run, lengths))


def learned(outcomes: Any, correction: Correction, evidence: Evidence | None = None) -> Evidence:
    evidence = nothing_learned(GAMMA) if evidence is None else evidence
    for outcome in outcomes:
        evidence = learn(
            evidence,
            outcome,
            correction=correction,
            costs=TABLES,
            inverse_temperature=UNIT[0],
            bias=UNIT[1],
        )
    return evidence


def numbers(evidence: Evidence) -> Floats:
    arrays = (evidence.log_ratio, evidence.weight, evidence.bias, evidence.information)
    return np.concatenate([[float(evidence.steps)], *arrays])


def same(one: Evidence, other: Evidence) -> bool:
    return numbers(one).tobytes() == numbers(other).tobytes()


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """Anything a server may report, absurd seconds and confidences included."""
    rows = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(0, draw(st.sampled_from([0.5, 5.0, 1e6])), (rows, GAMMA))
    lengths = rng.integers(0, GAMMA + 1, rows)
    missing = rng.random(rows) < 0.3
    logits[missing], lengths[missing] = -np.inf, 0
    second = st.sampled_from([0.0, 1e-9, 1e-3, 0.01, 5.0, 1e9, math.inf, math.nan])
    return outcome_of(
        logits,
        lengths,
        (rng.random(rows) * (lengths + 1)).astype(np.int64),
        seconds=draw(st.tuples(second, second, second)),
        planned=draw(st.booleans()),
    )


@pytest.mark.law
@given(
    st.lists(outcomes(), max_size=20),
    st.builds(
        Correction,
        cost=st.booleans(),
        calibration=st.booleans(),
        bound=st.floats(1.01, 10.0),
        half_life_steps=st.floats(1.0, 1e4),
    ),
)
def test_corrections_stay_within_bounds_and_repeat_bit_for_bit(
    steps: list[Outcome], correction: Correction
) -> None:
    evidence = learned(steps, correction)
    found = factors(evidence, correction)
    assert (found >= 1 / correction.bound).all()
    assert (found <= correction.bound).all()
    assert (np.abs(evidence.bias) <= math.log(correction.bound)).all()
    assert np.isfinite(numbers(evidence)).all()
    assert (evidence.information >= 0).all()
    if not correction.cost:
        assert (found == 1).all()
    if not correction.calibration:
        assert not evidence.bias.any()
    assert same(evidence, learned(steps, correction))
    half = learned(steps[: len(steps) // 2], correction)
    before = numbers(half)
    assert same(evidence, learned(steps[len(steps) // 2 :], correction, half))
    assert numbers(half).tobytes() == before.tobytes()  # learning leaves what it was given


@pytest.mark.law
@pytest.mark.parametrize("ratio", [(1.0, 1.0, 1.0), (1.4, 0.8, 1.0), (0.7, 1.3, 1.9)])
def test_each_parts_factor_comes_to_be_measured_over_predicted(ratio: Any) -> None:
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(400):
        plain = drawn(rng, int(rng.integers(1, 40)), int(rng.integers(0, GAMMA + 1)))
        noise = np.exp(rng.normal(0, 0.1, 3))
        seconds = tuple(predicted_seconds(TABLES, plain) * ratio * noise)
        steps.append(dataclasses.replace(plain, seconds=seconds))
    found = factors(learned(steps, BOTH), BOTH)
    np.testing.assert_allclose(found, ratio, rtol=0.06)
    priced = predicted_seconds(corrected_costs(TABLES, found), steps[0])
    np.testing.assert_allclose(priced, predicted_seconds(TABLES, steps[0]) * found, rtol=1e-12)


@pytest.mark.law
def test_beyond_the_bound_it_stops_there_and_one_hiccup_moves_little() -> None:
    rng = np.random.default_rng(0)
    step = drawn(rng, 8, 3)
    slow = dataclasses.replace(step, seconds=tuple(1000 * predicted_seconds(TABLES, step)))
    assert factors(learned([slow] * 300, BOTH), BOTH).tolist() == pytest.approx([2.0] * 3)
    plain = [step] * 300
    moved = factors(learned([*plain, slow], BOTH), BOTH)
    assert (moved < 1.03).all()
    sure = outcome_of(np.full((50, GAMMA), 4.0), [GAMMA] * 50, [0] * 50)
    evidence = learned([sure] * 300, BOTH)
    assert evidence.bias[0] == pytest.approx(-math.log(2.0))
    assert not evidence.bias[1:].any()  # nothing reached them


@pytest.mark.law
@pytest.mark.parametrize("rows", [4, 64])
def test_the_bias_comes_to_be_the_drift_of_the_odds(rows: int) -> None:
    shift = np.array([0.5, -0.4, 0.3, -0.5])
    correction = Correction(calibration=True, half_life_steps=300.0)
    rng = np.random.default_rng(1)
    evidence = nothing_learned(GAMMA)
    seen = []
    for step in range(2000):
        evidence = learned([drawn(rng, rows, GAMMA, shift=shift)], correction, evidence)
        if step >= 1000:
            seen.append(evidence.bias)
    np.testing.assert_allclose(np.mean(seen, axis=0), shift, atol=0.08)
    assert (np.std(seen, axis=0) < 0.2).all()


@pytest.mark.law
def test_a_position_out_of_every_plan_returns_to_the_file() -> None:
    """After ten half-lives of other evidence hardly anything is left of its correction."""
    rng = np.random.default_rng(2)
    correction = Correction(cost=True, calibration=True, half_life_steps=20.0)
    evidence = learned([drawn(rng, 64, GAMMA, shift=-2.0) for _ in range(400)], correction)
    start = evidence.bias.copy()
    assert (start < -0.5).all()
    halved = learned([drawn(rng, 64, 2) for _ in range(110)], correction, evidence)
    assert (halved.bias[2:] > 0.55 * start[2:]).all()
    gone = learned([drawn(rng, 64, 2) for _ in range(120)], correction, halved)
    assert (gone.bias[2:] > 0.05 * start[2:]).all()
    assert (np.abs(gone.bias[:2]) < 0.3).all()
    step = drawn(rng, 8, 2)
    slow = dataclasses.replace(step, seconds=tuple(1e9 * predicted_seconds(TABLES, step)))
    dear = learned([slow] * 200, correction)
    assert factors(dear, correction).tolist() == pytest.approx([2.0] * 3)
    silent = dataclasses.replace(step, seconds=(0.0, 0.0, 0.0))
    assert (factors(learned([silent] * 240, correction, dear), correction) < 1.05).all()


@pytest.mark.example
def test_two_requests_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first passes both of its 2; the second fails at its second of 4; even odds all over."""
    monkeypatch.setattr(module, "_PRIOR_INFORMATION", 1.0)
    correction = Correction(calibration=True, half_life_steps=1.0)
    step = outcome_of(np.zeros((2, GAMMA)), [2, 4], [2, 1])
    found = learned([step], correction)
    # Position 1: 2 of 2 came, expected 1, information 2 / 4; position 2: 1 of 2; nobody beyond.
    assert found.bias.tolist() == pytest.approx([1 / 1.5, 0, 0, 0])
    assert found.information.tolist() == [0.5, 0.5, 0, 0]
    unplanned = learned([dataclasses.replace(step, planned=False)], correction, found)
    assert unplanned.information.tolist() == [0.25, 0.25, 0, 0]
    # The prior pulls by half of what it weighs, as half of the past is gone.
    assert unplanned.bias[0] == pytest.approx(found.bias[0] * (1 - 0.5 / 1.25))


@pytest.mark.example
def test_parts_without_a_price_are_inside_the_forwards() -> None:
    sps = SpsTable(
        sample_batch_tokens=(1, 8), sample_steps_per_sec=(100.0, 50.0), max_batch_tokens=8
    )
    costs = from_sps(sps).tables(8, 4)
    step = outcome_of(np.zeros((1, GAMMA)), [3], [1])
    forward_s = predicted_seconds(costs, step)[1]
    step = dataclasses.replace(step, seconds=(0.2 * forward_s, 1.2 * forward_s, 0.1 * forward_s))
    evidence = nothing_learned(GAMMA)
    for _ in range(400):
        evidence = learn(
            evidence,
            step,
            correction=BOTH,
            costs=costs,
            inverse_temperature=UNIT[0],
            bias=UNIT[1],
        )
    found = factors(evidence, BOTH)
    assert found.tolist() == pytest.approx([1.0, 1.5, 1.0], rel=0.02)


def planner_of(policy: Policy, correction: Correction, **fields: Any) -> CorrectedPlanner:
    values = {"cost_model": MODEL, "gamma": GAMMA, "max_requests": 64, **fields}
    return CorrectedPlanner(policy=policy, correction=correction, **values)


def state_of(rng: np.random.Generator, rows: int, **fields: Any) -> BatchState:
    logits, stale = rng.normal(0.5, 1.5, (2, rows, GAMMA))
    return BatchState(
        logits=logits,
        stale_logits=stale,
        stale_age=np.full(rows, 2),
        context_tokens=np.full(rows, 900),
        **fields,
    )


@pytest.mark.law
@pytest.mark.parametrize("name", POLICIES)
def test_switched_off_it_plans_as_a_planner_does(name: str) -> None:
    rng = np.random.default_rng(3)
    policy = POLICIES[name]()
    calibration = Calibration(temperatures=(1.2, 0.9, 1.1, 1.4), biases=(0.1, 0.0, 0.2, -0.3))
    off = planner_of(policy, Correction(), calibration=calibration)
    plain = Planner(
        policy=policy, cost_model=MODEL, gamma=GAMMA, max_requests=64, calibration=calibration
    )
    for _ in range(50):
        state = state_of(rng, int(rng.integers(1, 40)))
        one, other = off.plan(state), plain.plan(state)
        assert one.lengths.tolist() == other.lengths.tolist()
        assert one.predicted_step_s == other.predicted_step_s
        assert one.expected_tokens == other.expected_tokens
        off.learn(drawn(rng, 8, 3, shift=-2.0))


@pytest.mark.law
def test_a_plan_depends_on_the_state_and_on_what_was_learned_alone() -> None:
    rng = np.random.default_rng(4)
    planner, other = (planner_of(GlobalBudget(), BOTH) for _ in range(2))
    moved = 0
    for _ in range(60):
        state = state_of(rng, 24)
        plan = planner.plan(state)
        assert planner.plan(state).lengths.tolist() == plan.lengths.tolist()
        planner.learn(drawn(rng, 24, 2, shift=-1.0))
        other.adopt(copy.deepcopy(planner.evidence))
        later = planner.plan(state)
        assert other.plan(state).lengths.tolist() == later.lengths.tolist()
        moved += later.lengths.tolist() != plan.lengths.tolist()
    assert moved > 0


@pytest.mark.law
def test_learning_prices_moves_budgets_and_predictions_the_right_way() -> None:
    rng = np.random.default_rng(5)
    state = state_of(rng, 48)
    planner = planner_of(GlobalBudget(), Correction(cost=True, half_life_steps=20.0))
    before = planner.plan(state)
    for _ in range(200):
        step = drawn(rng, 48, 3)
        planner.learn(
            dataclasses.replace(step, seconds=tuple(predicted_seconds(TABLES, step) * 1.5))
        )
    same_choice = planner.plan(state)
    assert same_choice.lengths.tolist() == before.lengths.tolist()  # everything is dearer alike
    assert same_choice.predicted_step_s == pytest.approx(1.5 * before.predicted_step_s, rel=0.03)
    for _ in range(200):
        step = drawn(rng, 48, 3)
        draft, verify, host = predicted_seconds(TABLES, step)
        planner.learn(dataclasses.replace(step, seconds=(draft * 2, verify * 0.5, host * 2)))
    assert planner.plan(state).lengths.sum() > before.lengths.sum()


@pytest.mark.law
def test_exploration_goes_round_by_counting_and_costs_what_it_says() -> None:
    rng = np.random.default_rng(6)
    correction = Correction(explore_every=5)
    assert [explored_row(correction, step, 3) for step in range(5, 26, 5)] == [1, 2, 0, 1, 2]
    assert {explored_row(correction, step, 3) for step in (1, 2, 3, 4, 6)} == {-1}
    assert explored_row(Correction(), 5, 3) == explored_row(correction, 5, 0) == -1
    planner = planner_of(ConfidenceThreshold(threshold=0.9), correction)
    plain = planner_of(ConfidenceThreshold(threshold=0.9), Correction())
    for step in range(1, 41):
        state = state_of(rng, 8)
        found, usual = planner.plan(state), plain.plan(state)
        row = explored_row(correction, step, 8)
        changed = found.lengths != usual.lengths
        assert not changed[np.arange(8) != row].any()
        if row < 0:
            continue
        assert found.lengths[row] == GAMMA
        tokens = found.step_tokens
        assert tokens - usual.step_tokens <= GAMMA
        context = 8 * TABLES.context_reference_tokens
        priced = decode_step_seconds(planner.costs, tokens, 8, 8, context, UNIFORM)
        assert found.predicted_step_s == priced
        survival = planner.survival(state.logits)
        wanted = 8 + sum(survival[r, :n].sum() for r, n in enumerate(found.lengths))
        assert found.expected_tokens == pytest.approx(wanted)


@pytest.mark.example
def test_exploration_leaves_alone_what_was_not_drafted_or_has_no_room() -> None:
    rng = np.random.default_rng(7)
    correction = Correction(explore_every=1)
    tight = state_of(rng, 8, kv_room_tokens=8 * (GAMMA + 1) - 1)
    undrafted = state_of(rng, 8)
    undrafted.logits[:] = -np.inf
    for policy in (FixedLength(length=1), NoSpeculation(), GlobalBudget()):
        for state in (tight, undrafted):
            found = planner_of(policy, correction).plan(state)
            usual = planner_of(policy, Correction()).plan(state)
            assert found.lengths.tolist() == usual.lengths.tolist()
    assert planner_of(NoSpeculation(), correction).plan(state_of(rng, 8)).lengths.sum() == 0


@pytest.mark.law
def test_exploration_frees_a_position_that_the_file_shuts_out() -> None:
    """The file says that position 2 never passes; in truth it passes at even odds."""
    calibration = Calibration(temperatures=(1.0,) * GAMMA, biases=(0.0, -1.0, 0.0, 0.0))
    policy = ConfidenceThreshold(threshold=0.4)

    def share_verified(correction: Correction) -> float:
        rng = np.random.default_rng(8)
        planner = planner_of(policy, correction, calibration=calibration)
        deep = 0
        for _ in range(3000):
            logits = np.tile([2.0, 0.4, 2.0, 2.0], (4, 1)) + rng.normal(0, 0.05, (4, GAMMA))
            state = dataclasses.replace(state_of(rng, 4), logits=logits)
            lengths = planner.plan(state).lengths
            passed = rng.random((4, GAMMA)) < 1 / (1 + np.exp(-logits))
            run = np.cumprod(passed, axis=1).sum(axis=1)
            planner.learn(outcome_of(logits, lengths, np.minimum(run, lengths)))
            deep += int((lengths > 1).sum())
        return deep / 12000

    assert share_verified(Correction(calibration=True)) == 0
    explored = Correction(calibration=True, explore_every=10, half_life_steps=2000.0)
    assert share_verified(explored) > 0.3


@pytest.mark.example
def test_the_built_in_policys_twin_is_not_corrected() -> None:
    with pytest.raises(ValueError, match="policy sglang decides as SGLang does"):
        planner_of(SGLangPlanner(), BOTH)


@pytest.mark.example
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bound": 1.0}, "bound 1.0 must be above 1 and at most 10"),
        ({"bound": math.nan}, "bound nan must be above 1"),
        ({"half_life_steps": 0.5}, "half_life_steps 0.5 must be a finite number from 1"),
        ({"half_life_steps": math.inf}, "half_life_steps inf must be a finite number"),
        ({"explore_every": -1}, "explore_every -1 must be 0 (never) or more steps"),
    ],
)
def test_wrong_settings_get_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Correction(**fields)


# Two rounds of one request, every draft, acceptance and outcome enumerated, in the manner of
# test_appendix_a: after each round the planner learns, and its second plan depends on the first.

TARGET = np.array([[0.7, 0.3], [0.35, 0.65]])
DRAFTER = np.array([[0.5, 0.5], [0.6, 0.4]])
HEAD = np.array([[0.55, 0.62], [0.9, 0.05]])
"""[K, previous token] what the head says; position 2 gives away token 1."""
ROUND_COSTS = from_sps(
    SpsTable(
        sample_batch_tokens=(1, 2, 3),
        sample_steps_per_sec=(1.0, 1 / 1.45, 1 / 1.8),
        max_batch_tokens=3,
    )
)
HORIZON = 6


class Enumeration:
    """The exact distribution of what two rounds serve, the target writing the rest."""

    def __init__(self, planner: CorrectedPlanner, *, peeks: bool = False, first: int = 0) -> None:
        self.planner = planner
        self.peeks = peeks
        self.first = first
        self.served: dict[tuple[int, ...], float] = dict.fromkeys(
            itertools.product(range(2), repeat=HORIZON), 0.0
        )
        self.plans: dict[tuple[int, ...], set[int]] = {}

    def run(self) -> float:
        """The largest difference from what the target samples."""
        self._round((), 1.0, nothing_learned(2), np.full((1, 2), np.nan), 2)
        gaps = [abs(p - self._by_target(tokens)) for tokens, p in self.served.items()]
        assert sum(self.served.values()) == pytest.approx(1.0, rel=1e-12)
        return max(gaps)

    def _by_target(self, tokens: tuple[int, ...], before: int = 0) -> float:
        pairs = itertools.pairwise((before, *tokens))
        return math.prod(TARGET[a, b] for a, b in pairs)

    def _round(
        self, tokens: tuple[int, ...], p: float, evidence: Evidence, stale: Floats, left: int
    ) -> None:
        last = tokens[-1] if tokens else 0
        if not left:
            for rest in itertools.product(range(2), repeat=HORIZON - len(tokens)):
                self.served[tokens + rest] += p * self._by_target(rest, last)
            return
        for draft in itertools.product(range(2), repeat=2):
            head = np.array([[HEAD[0, last], HEAD[1, draft[0]]]])
            logits = np.log(head / (1 - head))
            known = evidence
            if self.peeks:  # a correction that has seen the step it is used in
                known = dataclasses.replace(evidence, bias=np.full(2, np.sign(logits[0, 1])))
            length = self._plan(known, logits, stale)
            if left == 1:
                self.plans.setdefault((last, *draft), set()).add(length)
            q = DRAFTER[last, draft[0]] * DRAFTER[draft[0], draft[1]]
            for new, accepted, chance in self._verified(last, draft, length):
                outcome = Outcome(
                    logits=logits,
                    lengths=np.array([length]),
                    accepted=np.array([accepted]),
                    context_tokens=9,
                    computed_tokens=1 + length,
                    # A step's seconds may well depend on what it committed.
                    seconds=(0.0, 1.0 + new[-1] + accepted, 0.0),
                )
                self.planner.adopt(evidence)
                self.planner.learn(outcome)
                after = self.planner.evidence
                self._round(tokens + new, p * q * chance, after, logits, left - 1)

    def _plan(self, evidence: Evidence, logits: Floats, stale: Floats) -> int:
        self.planner.adopt(evidence)
        state = BatchState(
            logits=logits,
            stale_logits=stale,
            stale_age=np.array([int(not np.isnan(stale[0, 0]))]),
            context_tokens=np.array([9]),
        )
        self.planner.steps_planned = self.first + evidence.steps
        return int(self.planner.plan(state).lengths[0])

    def _verified(self, last: int, draft: tuple[int, ...], length: int) -> Any:
        """(tokens committed, drafts accepted, probability) of rejection sampling."""
        alive, before = 1.0, last
        for k, proposed in enumerate(draft[:length]):
            p, q = TARGET[before], DRAFTER[before]
            accept = min(1.0, p[proposed] / q[proposed])
            residual = np.maximum(p - q, 0.0)
            if accept < 1.0:
                for token in np.flatnonzero(residual).tolist():
                    chosen = residual[token] / residual.sum()
                    yield (*draft[:k], token), k, alive * (1 - accept) * chosen
            alive *= accept
            before = proposed
        for token in range(2):
            yield (*draft[:length], token), length, alive * TARGET[before, token]


@pytest.mark.law
@pytest.mark.parametrize("explore_every", [0, 2])
@pytest.mark.parametrize(
    "policy",
    [EarlyStop(), GlobalBudget(), ConfidenceThreshold(threshold=0.5)],
    ids=lambda p: p.name,
)
def test_learning_between_steps_keeps_the_output_the_targets(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, explore_every: int
) -> None:
    """Corrections are as jumpy as the bound allows, so that second plans differ by what was seen.

    Where one is explored, it is the first.
    """
    monkeypatch.setattr(module, "_PRIOR_INFORMATION", 0.05)
    correction = Correction(
        cost=True, calibration=True, bound=4.0, half_life_steps=1.0, explore_every=explore_every
    )
    planner = CorrectedPlanner(
        policy=policy, cost_model=ROUND_COSTS, gamma=2, max_requests=1, correction=correction
    )
    enumeration = Enumeration(planner, first=1)
    assert enumeration.run() < 1e-14
    assert max(len(lengths) for lengths in enumeration.plans.values()) > 1


@pytest.mark.law
def test_the_same_check_catches_a_correction_that_has_seen_its_own_step() -> None:
    planner = CorrectedPlanner(
        policy=EarlyStop(),
        cost_model=ROUND_COSTS,
        gamma=2,
        max_requests=1,
        correction=Correction(calibration=True),
    )
    assert Enumeration(planner).run() < 1e-14
    assert Enumeration(planner, peeks=True).run() > 0.01
