"""Profiles on disk: recorded logs replay exactly, and wrong files get one sentence each."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.acceptance.load import load_acceptance
from simulator.acceptance.recorded import EmpiricalProfile
from simulator.acceptance.tables import AcceptanceTables, begin_request, draw_round, nearest_records

Edit = Callable[[dict[str, Any]], object]
GAMMA = 3


def columns() -> dict[str, list[Any]]:
    """Five recorded requests, two of them code, with 2..6 rounds each, rows out of order."""
    rng = np.random.default_rng(0)
    rows = []
    for request, domain in ((40, "chat"), (7, "code"), (3, "chat"), (9, "code"), (12, "chat")):
        for step in range(2 + request % 5):
            logits = rng.normal(size=GAMMA).tolist()
            rows.append((request, step, domain, logits, int(rng.integers(0, GAMMA + 1))))
    rng.shuffle(rows)
    names = ("request", "step", "domain", "logits", "accepted")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def save(path: Path, values: dict[str, Any]) -> Path:
    pq.write_table(pa.table(values), path)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return save(tmp_path / "recorded.parquet", columns())


def replayed(
    tables: AcceptanceTables, seed: int, request: int, domain: int, rounds: int
) -> list[tuple[int, tuple[float, ...]]]:
    difficulty, state = begin_request(tables, seed, request, domain, 100)
    found, position = [], 0
    for step in range(rounds):
        logits = np.empty(GAMMA)
        accepted, state = draw_round(
            tables, seed, request, step, domain, difficulty, state, position, logits
        )
        position += accepted + 1
        found.append((accepted, tuple(logits.tolist())))
    return found


def recorded(domain: str | None) -> dict[int, list[tuple[int, tuple[float, ...]]]]:
    by_request: dict[int, dict[int, tuple[int, tuple[float, ...]]]] = {}
    for request, step, name, logits, accepted in zip(*columns().values(), strict=True):
        if domain in (None, name):
            by_request.setdefault(request, {})[step] = (accepted, tuple(logits))
    return {r: [rounds[s] for s in sorted(rounds)] for r, rounds in by_request.items()}


@pytest.mark.law
@pytest.mark.parametrize(("code", "domain"), [(0, "code"), (1, "chat"), (-1, None)])
def test_a_request_replays_one_recorded_request_of_its_domain_round_by_round(
    log: Path, code: int, domain: str | None
) -> None:
    profile = load_acceptance(log)
    assert isinstance(profile, EmpiricalProfile)
    assert (profile.name, profile.gamma, profile.domains) == ("recorded", 3, ("chat", "code"))
    tables = profile.tables(("code", "chat"))
    originals = recorded(domain)
    used = set()
    for request in range(80):
        rounds = replayed(tables, 1, request, code, 13)
        matches = [
            r
            for r, kept in originals.items()
            if rounds == [kept[step % len(kept)] for step in range(13)]
        ]
        assert len(matches) == 1
        used.add(matches[0])
    assert used == set(originals)


@pytest.mark.law
def test_which_request_is_replayed_depends_on_seed_and_request_only(log: Path) -> None:
    profile = load_acceptance(log)
    tables = profile.tables(("code", "chat"))
    turned = profile.tables(("chat", "code"))
    for request in range(30):
        assert replayed(tables, 3, request, 1, 6) == replayed(turned, 3, request, 0, 6)
    one = [replayed(tables, 3, r, 1, 6) for r in range(30)]
    other = [replayed(tables, 4, r, 1, 6) for r in range(30)]
    assert one != other


@pytest.mark.example
def test_a_domain_that_was_not_recorded_replays_any_request_with_one_warning(log: Path) -> None:
    with pytest.warns(UserWarning, match="recorded has no domain law .*all its requests") as seen:
        tables = load_acceptance(log).tables(("law",))
    assert len(seen) == 1
    assert tables.log_first_request.tolist() == [0, 5, 10]


@pytest.mark.law
@settings(deadline=None)  # the first example compiles
@given(
    tokens=st.lists(st.integers(1, 40), min_size=1, max_size=200).map(sorted),
    wanted=st.integers(-5, 50),
)
def test_near_records_are_the_nearest_in_rank_with_all_that_are_equal(
    tokens: list[int], wanted: int
) -> None:
    low, high = nearest_records(np.array(tokens), wanted)
    size = min(len(tokens), max(16, len(tokens) // 10))
    assert 0 <= low < high <= len(tokens)
    assert high - low >= size
    inside = tokens[low:high]
    assert inside.count(wanted) == tokens.count(wanted)
    if high - low > size:
        assert set(inside) == {wanted}
    below, above = bisect_left(tokens, wanted) - low, high - bisect_right(tokens, wanted)
    if low > 0 and high < len(tokens) and below + above > 0:
        assert abs(below - above) <= 1


@pytest.mark.law
def test_long_requests_replay_long_ones(tmp_path: Path) -> None:
    """Records of 1 .. 400 rounds, each token of a round accepted where the record is long."""
    rows = [
        (request, step, "chat", [0.0, 0.0, 0.0], 3 if request > 200 else 0)
        for request in range(1, 401)
        for step in range(request)
    ]
    names = ("request", "step", "domain", "logits", "accepted")
    values: dict[str, list[Any]] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    tables = load_acceptance(save(tmp_path / "log.parquet", values)).tables(("chat",))
    for request in range(100):
        assert begin_request(tables, 1, request, 0, 20)[0] < 41
        assert begin_request(tables, 1, request, 0, 1600)[0] >= 360
        assert 180 <= begin_request(tables, 1, request, -1, 201)[0] < 220
    # The answers were longer than their rounds say: trimmed ones would have brought less.
    values["output_tokens"] = [1 + request for request, *_ in rows]
    tables = load_acceptance(save(tmp_path / "log.parquet", values)).tables(("chat",))
    for request in range(100):
        assert 279 <= begin_request(tables, 1, request, 0, 300)[0] < 319


@pytest.mark.law
def test_a_round_inside_a_recorded_one_has_what_is_left_of_its_run(tmp_path: Path) -> None:
    """A record of runs 2, 0, 2: tokens 0..2, 3, 4..6; the first of each was drafted afresh."""
    values: dict[str, list[Any]] = {
        "request": [5, 5, 5], "step": [0, 1, 2], "domain": ["chat"] * 3, "accepted": [2, 0, 2],
        "logits": [[0.1, 0.2, 0.3], [1.1, 1.2, 1.3], [2.1, 2.2, 2.3]],
    }  # fmt: skip
    tables = load_acceptance(save(tmp_path / "log.parquet", values)).tables(("chat",))

    def at(position: int, seed: int) -> tuple[int, list[float]]:
        logits = np.empty(GAMMA)
        accepted, _ = draw_round(tables, seed, 9, 0, 0, 0.0, 0.0, position, logits)
        return accepted, logits.tolist()

    def found(position: int) -> set[tuple[int, tuple[float, ...]]]:
        return {(run, tuple(logits)) for run, logits in (at(position, s) for s in range(40))}

    assert found(0) == {(2, (0.1, 0.2, 0.3))} == found(7)
    assert found(3) == {(0, (1.1, 1.2, 1.3))}
    # One token is left; past the one that was rejected begins the round whose run is empty.
    assert found(1) == {(1, (0.2, 0.3, 0.3)), (2, (0.2, 0.3, 1.1))}
    assert found(2) == {(0, (0.3, 0.3, 0.3)), (1, (0.3, 1.1, 1.2))}
    passed = sum(at(2, seed)[0] for seed in range(400))
    assert 150 < passed < 250
    # Nothing follows the last round.
    assert found(5) == {(1, (2.2, 2.3, 2.3))}


@pytest.mark.law
def test_a_run_that_the_blocks_end_stopped_goes_on_as_at_the_last_position(tmp_path: Path) -> None:
    """Of ten records with a run of 2 at least, nine have the third token too; then 0 follows."""
    runs = [3] * 9 + [2]
    values: dict[str, list[Any]] = {
        "request": [n for n in range(10) for _ in range(2)], "step": [0, 1] * 10,
        "domain": ["chat"] * 20, "accepted": [run for first in runs for run in (first, 0)],
        "logits": [[0.1, 0.2, 0.3], [1.1, 1.2, 1.3]] * 10,
    }  # fmt: skip
    tables = load_acceptance(save(tmp_path / "log.parquet", values)).tables(("chat",))
    logits = np.empty(GAMMA)
    passed = [draw_round(tables, seed, 9, 0, 0, 0.0, 0.0, 3, logits)[0] for seed in range(2000)]
    assert set(passed) == {0, 1}
    assert 0.87 < np.mean(passed) < 0.93


@pytest.mark.law
def test_rounds_that_were_not_recorded_leave_a_gap(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "request": [5, 5], "step": [2, 9], "domain": ["chat"] * 2, "accepted": [1, 2],
        "position": [4, 20], "output_tokens": [30, 30],
        "logits": [[0.1, 0.2, 0.3], [1.1, 1.2, 1.3]],
    }  # fmt: skip
    tables = load_acceptance(save(tmp_path / "log.parquet", values)).tables(("chat",))
    for position, run in ((0, 1), (4, 1), (6, 2), (12, 2), (20, 2)):
        assert draw_round(tables, 1, 9, 0, 0, 0.0, 0.0, position, np.empty(GAMMA))[0] == run


def damage(name: str, row: int, value: object) -> Edit:
    return lambda values: values[name].__setitem__(row, value)


WRONG_LOGS: dict[str, tuple[Edit, str]] = {
    "no column": (lambda v: v.pop("accepted"), r"column 'accepted' is missing; .* has the columns"),
    "no rounds": (lambda v: [c.clear() for c in v.values()], r"the log has no rounds; record"),
    "accepted too high": (
        damage("accepted", 4, 4),
        r"column 'accepted', row 4: 4 is wrong; it must be 0\.\.3",
    ),
    "no output": (
        lambda v: v.__setitem__("output_tokens", [0] * len(v["step"])),
        r"column 'output_tokens', row 0: 0 is wrong; it must be >= 1",
    ),
    "outputs that differ": (
        lambda v: v.__setitem__("output_tokens", list(range(1, len(v["step"]) + 1))),
        r"column 'output_tokens', row \d+: \d+ is wrong; another row of the request differs",
    ),
    "a position that stands still": (
        lambda v: v.__setitem__("position", [7] * len(v["step"])),
        r"column 'position', row \d+: 7 is wrong; it must be >= 0 and rise from round to round",
    ),
    "accepted negative": (
        damage("accepted", 0, -1),
        r"column 'accepted', row 0: -1 is wrong; it must be 0\.\.3",
    ),
    "logit not a number": (
        damage("logits", 2, [0.0, float("nan"), 1.0]),
        r"column 'logits', row 2: .* every logit must be a finite number",
    ),
    "short logits": (
        damage("logits", 5, [0.0, 1.0]),
        r"column 'logits', row 5: 2 is wrong; row 0 has 3 values, so must all",
    ),
    "no logits": (
        lambda v: v.update(logits=[[0.0] * 16] * len(v["step"])),
        r"column 'logits', row 0: 16 values; a block has 1\.\.15 positions",
    ),
    "flat logits": (
        lambda v: v.update(logits=[1.0] * len(v["step"])),
        r"column 'logits' holds double; it must hold lists of floats",
    ),
    "step twice": (
        lambda v: v.update(step=[0] * len(v["step"])),
        r"column 'step', row \d+: request 3 has step 0 twice",
    ),
    "negative step": (
        damage("step", 6, -3),
        r"column 'step', row 6: -3 is wrong; it must be >= 0",
    ),
    "text for a number": (
        lambda v: v.update(request=[str(r) for r in v["request"]]),
        r"column 'request' holds string; it must hold integers",
    ),
    "number for a domain": (
        lambda v: v.update(domain=[1] * len(v["step"])),
        r"column 'domain' holds int64; it must hold strings",
    ),
    "missing value": (damage("accepted", 3, None), r"column 'accepted', row 3: no value"),
    "two domains": (
        lambda v: damage("domain", v["request"].index(40), "math")(v),
        r"column 'domain': request 40 has rounds in more than one domain",
    ),
}


@pytest.mark.example
@pytest.mark.parametrize("case", WRONG_LOGS)
def test_a_wrong_log_gets_a_sentence_with_file_column_row_and_rule(
    case: str, tmp_path: Path
) -> None:
    edit, sentence = WRONG_LOGS[case]
    values: dict[str, Any] = columns()
    edit(values)
    schema = {"request": pa.int64(), "step": pa.int64()} if case == "no rounds" else {}
    arrays = {name: pa.array(column, schema.get(name)) for name, column in values.items()}
    path = save(tmp_path / "wrong.parquet", arrays)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {sentence}"):
        load_acceptance(path)


@pytest.mark.example
def test_a_file_that_is_not_parquet_or_not_there_says_so(tmp_path: Path) -> None:
    path = tmp_path / "text.parquet"
    path.write_text("not a log", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.parquet: not a Parquet file \(.*record it again"):
        load_acceptance(path)
    with pytest.raises(ValueError, match=r"gone\.parquet: cannot read: "):
        load_acceptance(tmp_path / "gone.parquet")


WRONG_PROFILES: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda p: p.update(gama=3), r"unknown key 'gama'; did you mean 'gamma'\?"),
    "unknown inner key": (
        lambda p: p["domains"]["chat"].update(noise=1),
        r"domains\.chat: unknown key 'noise'",
    ),
    "missing key": (lambda p: p["domains"]["code"].pop("token_sd"), r"domains\.code: .*token_sd"),
    "wrong version": (lambda p: p.update(schema_version=2), r"schema_version is 2; .* reads 1"),
    "gamma out of range": (lambda p: p.update(gamma=16), r"gamma is 16; it must be 1\.\.15"),
    "wrong length": (
        lambda p: p["domains"]["math"]["mean_logit"].pop(),
        r"domains\.math: mean_logit has 6 values; give gamma = 7 of them",
    ),
    "negative spread": (
        lambda p: p["domains"]["math"].update(step_sd=-1.0),
        r"domains\.math: step_sd is -1\.0; it must be a finite number >= 0",
    ),
    "negative noise": (
        lambda p: p["domains"]["chat"]["confidence_noise"].__setitem__(2, -0.1),
        r"domains\.chat: confidence_noise at position 3 is -0\.1; .* >= 0",
    ),
    "no scale": (
        lambda p: p["domains"]["chat"]["confidence_scale"].__setitem__(0, 0.0),
        r"domains\.chat: confidence_scale at position 1 is 0\.0; it must be > 0",
    ),
    "correlation of one": (
        lambda p: p["domains"]["chat"].update(step_correlation=1.0),
        r"domains\.chat: step_correlation is 1\.0; it must lie inside \(-1, 1\)",
    ),
    "unknown default": (
        lambda p: p.update(default_domain="law"),
        r"default_domain 'law' is not among the domains \(chat, code, math\)",
    ),
    "unknown origin": (
        lambda p: p["provenance"][0].update(origin="guessed"),
        r"provenance\[0\]: .*guessed",
    ),
}


@pytest.mark.example
@pytest.mark.parametrize("case", WRONG_PROFILES)
def test_a_wrong_profile_gets_a_sentence_with_file_place_and_rule(
    case: str, tmp_path: Path
) -> None:
    edit, sentence = WRONG_PROFILES[case]
    shipped = Path(load_acceptance.__code__.co_filename).parent / "profiles"
    value = json.loads((shipped / "dspark-qwen3-4b.json").read_text(encoding="utf-8"))
    edit(value)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {sentence}"):
        load_acceptance(path)


@pytest.mark.example
def test_an_unknown_name_lists_the_shipped_profiles() -> None:
    with pytest.raises(
        ValueError,
        match=r"dspark-qwen3: no acceptance profile .*did you mean dspark-qwen3-4b\?.*mtp1",
    ):
        load_acceptance("dspark-qwen3")
