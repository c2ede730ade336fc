"""The executor of sweeps: order, retries, the journal, Ctrl-C; the same by any number of jobs."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.sweep.journal import digest_of
from simulator.sweep.process_pool import MOST_DEATHS
from simulator.sweep.sweep import sweep
from tests.simulator.replay_scenes import scenario, trace
from tests.simulator.sweep.sweep_works import (
    Point,
    processes,
    refuse_three,
    square,
    wait_for_the_end,
)
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def points(folder: Path, n: int, **changes: int) -> list[Point]:
    return [Point(number=i, diary=folder, **changes) for i in range(n)]


@pytest.mark.law
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_the_order_of_the_points(jobs: int, tmp_path: Path) -> None:
    done: list[int] = []
    units: list[int] = []
    asked = points(tmp_path, 7)[::-1]
    found, cut = sweep(asked, square, jobs=jobs, on_done=done.append, on_units=units.append)
    assert found == [point.number**2 for point in asked]
    assert not cut
    assert done == list(range(8))
    assert units[-1] == 70


@pytest.mark.example
def test_no_points_are_no_results(tmp_path: Path) -> None:
    assert sweep([], square, jobs=2, journal=tmp_path / "j") == ([], False)


@pytest.mark.example
def test_a_killed_worker_is_replaced_and_its_point_done_again(tmp_path: Path) -> None:
    asked = points(tmp_path, 6)
    asked[2] = dataclasses.replace(asked[2], dies=2)
    units: list[int] = []
    found, cut = sweep(asked, square, jobs=2, on_units=units.append)
    assert (found, cut) == ([i**2 for i in range(6)], False)
    assert units[-1] == 60  # what was done twice counts once
    assert asked[2].attempts() == 3
    assert all(point.attempts() <= 2 for point in asked if point.number != 2)


@pytest.mark.example
def test_a_point_that_always_kills_its_worker_ends_the_sweep_with_a_sentence(
    tmp_path: Path,
) -> None:
    asked = points(tmp_path, 4)
    asked[1] = dataclasses.replace(asked[1], dies=1000)
    with pytest.raises(ValueError, match=r"killed 3 times at the same point; lower"):
        sweep(asked, square, jobs=2)
    assert asked[1].attempts() == MOST_DEATHS
    assert sum(point.attempts() for point in asked if point.number != 1) <= 4


@pytest.mark.example
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_the_work_raises_is_raised(jobs: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 is not squared here"):
        sweep(points(tmp_path, 5), refuse_three, jobs=jobs)


@pytest.mark.example
def test_zero_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--jobs 0 must be at least 1"):
        sweep(points(tmp_path, 1), square, jobs=0)


@pytest.mark.law
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_goes_on_from_its_journal_and_does_nothing_twice(jobs: int, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    asked = points(tmp_path, 6)
    sweep(asked[:4], square, journal=journal)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-5])  # a crash in the middle of the fourth line
    for _ in range(2):
        found, _ = sweep(asked, square, jobs=jobs, journal=journal)
        assert found == [i**2 for i in range(6)]
    assert [point.attempts() for point in asked] == [1, 1, 1, 2, 1, 1]


@pytest.mark.law
def test_a_changed_point_or_another_function_is_not_taken_from_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    sweep(points(tmp_path, 5), square, journal=journal)
    changed = points(tmp_path, 5, dies=-1)
    sweep(changed, square, journal=journal)
    assert [point.attempts() for point in changed] == [2] * 5
    with pytest.raises(ValueError, match="3 is not"):
        sweep(points(tmp_path, 5), refuse_three, journal=journal)


@pytest.mark.example
def test_equal_points_are_told_from_different_ones_by_their_fields() -> None:
    one, same = scenario("global", trace(20)), scenario("global", trace(20))
    before = digest_of(one)
    one.cost_model.verify_curve.dense(10)  # fills a cache of the model
    assert digest_of(one) == before == digest_of(same)
    others = [
        dataclasses.replace(one, seed=1),
        dataclasses.replace(one, trace=one.trace.head(19)),
        scenario("fixed:3", trace(20)),
    ]
    assert len({before, *map(digest_of, others)}) == 4


@pytest.mark.law
@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none())))
def test_the_digest_tells_lists_apart_and_nothing_else(values: list[object]) -> None:
    assert digest_of(values) == digest_of(list(values))
    assert digest_of(values) != digest_of([*values, 0])
    assert digest_of(values) != digest_of([values])
    assert digest_of(partial(square, *values)) != digest_of(partial(square, *values, 0))


@pytest.mark.example
def test_what_has_no_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="has no digest"):
        digest_of(object())
    with pytest.raises(ValueError, match="has no digest"):
        digest_of(np.array([object()]))


@pytest.mark.example
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_and_sigterm_keep_what_is_done_and_the_journal_keeps_what_is_whole(
    jobs: int, number: signal.Signals, tmp_path: Path
) -> None:
    asked = points(tmp_path, 5)
    journal = tmp_path / "journal"

    def interrupt() -> None:
        wait_until(asked[jobs].attempts)  # which follows point 0
        for process in {os.getpid()} | processes(tmp_path):  # as a terminal and ``timeout`` do
            os.kill(process, number)

    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        found, cut = sweep(asked, wait_for_the_end, jobs=jobs, journal=journal)
        thread.join()
    finally:
        ours = signal.signal(number, before)
    assert cut
    assert found[:2] == ["whole", "partial"]
    assert found[2:] == ([None] * 3 if jobs == 1 else ["partial", None, None])
    assert len(journal.read_bytes().splitlines()) == 1
    assert heard == [number]  # who is to hear it besides
    ours(number, None)
    assert heard == [number] * 2


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.mark.example
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_sweep_leaves_no_worker(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from simulator.sweep.sweep import sweep\n"
        "from tests.simulator.sweep.sweep_works import Point, wait_for_the_end\n"
        "asked = [Point(number=i, diary=Path(sys.argv[1])) for i in (1, 2, 3)]\n"
        "sweep(asked, wait_for_the_end, jobs=2)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, text=True, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: len(processes(tmp_path)) == 2, process)
        process.kill()
    wait_until(lambda: not any(map(lives, processes(tmp_path))))
