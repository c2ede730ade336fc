"""What is remembered of a request is the newest that was known, at its true age; of prefills, how
many there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.goodput import PREFILL_MEMORY
from sglang_dspark.core.history import LAG_STEPS, ConfidenceMemory, PrefillRate

SLOTS, GAMMA = 3, 2
# Of one step: for each slot, whether its request takes part, and whether it is drafted for.
STEPS = st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=SLOTS, max_size=SLOTS))


@pytest.mark.law
@given(STEPS)
def test_a_row_is_the_newest_known_two_of_its_requests_steps_ago(
    steps: list[list[tuple[bool, bool]]],
) -> None:
    memory = ConfidenceMemory(SLOTS, GAMMA)
    past: list[list[float | None]] = [[] for _ in range(SLOTS)]
    for number, step in enumerate(steps):
        slots = np.array([slot for slot in range(SLOTS) if step[slot][0]], dtype=np.int64)
        known = np.array([step[slot][1] for slot in slots], dtype=np.bool_)
        logits = np.where(known, number, -np.inf)[:, None].repeat(GAMMA, axis=1)
        stale, age = memory.advance(slots, logits, known)
        for row, slot in enumerate(slots):
            past[slot].append(number if known[row] else None)
            old = past[slot][: len(past[slot]) - LAG_STEPS]
            drafted = [at for at, value in enumerate(old) if value is not None]
            if not drafted:
                assert np.isnan(stale[row]).all()
                assert age[row] == 0
            else:
                assert (stale[row] == old[drafted[-1]]).all()
                assert age[row] == len(past[slot]) - 1 - drafted[-1] >= LAG_STEPS


@pytest.mark.example
def test_a_slot_that_starts_a_request_forgets_the_one_before() -> None:
    memory = ConfidenceMemory(SLOTS, GAMMA)
    both = np.array([0, 2])
    for value in range(4):
        memory.advance(both, np.full((2, GAMMA), float(value)), np.array([True, True]))
    memory.forget(both[:1])
    stale, age = memory.advance(both, np.full((2, GAMMA), 9.0), np.array([True, True]))
    assert np.isnan(stale[0]).all()
    assert stale[1].tolist() == [2.0] * GAMMA
    assert age.tolist() == [0, LAG_STEPS]


@pytest.mark.law
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_prefills_per_step_are_an_average_that_forgets(prefills: list[int]) -> None:
    rate = PrefillRate()
    for count in prefills:
        for _ in range(count):
            rate.prefill()
        found = rate.step()
    ages = np.arange(len(prefills))[::-1]
    weights = PREFILL_MEMORY * (1 - PREFILL_MEMORY) ** ages
    assert found == pytest.approx(float(weights @ prefills))
