"""Cutting, merging, scaling: the sidecar travels along, nothing is lost, users are not bursts."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import traces
from traces import Request, load_trace, read_requests, write_trace
from traces.convert import main as convert
from traces.cut import main as cut
from traces.superpose import SHIFT_S, merge, superpose
from traces.synthesize import main as synthesize

FOLDER = Path(traces.__file__).parent


def request(number: int, at_s: float, session: str | None = None, *blocks: int) -> Request:
    return Request(
        request_id=f"r{number}", arrival_s=at_s, prompt_tokens=600, output_tokens=5,
        session_id=session, prefix_hashes=list(blocks) or None,
    )  # fmt: skip


@some.composite
def traffic(draw: some.DrawFn) -> list[Request]:
    """Requests in arrival order, some of them turns of a few sessions behind one shared block."""
    times = sorted(draw(some.lists(some.floats(0, 3600), min_size=1, max_size=40)))
    return [
        request(i, round(t, 6), f"s{i % 5}" if i % 2 else None, 0, 1 + i % 5)
        for i, t in enumerate(times)
    ]


@pytest.mark.example
def test_the_head_of_a_shipped_trace_replays_and_a_bare_head_says_how(tmp_path: Path) -> None:
    out = tmp_path / "short.jsonl"
    assert cut([str(FOLDER / "chat.jsonl"), "--first", "200", "-o", str(out)]) == 0
    short, whole = load_trace(out), load_trace(FOLDER / "chat.jsonl")
    assert short.block_tokens == whole.block_tokens > 0
    assert np.array_equal(short.arrival_s, whole.arrival_s[:200])
    assert np.array_equal(short.prompt_tokens, whole.prompt_tokens[:200])
    bare = tmp_path / "bare.jsonl"
    bare.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:50]))
    with pytest.raises(ValueError, match=r"prefix_hashes without block_tokens.*traces\.cut"):
        load_trace(bare)
    bare.with_name("bare.meta.json").write_bytes((FOLDER / "chat.meta.json").read_bytes())
    with pytest.raises(ValueError, match=r"is not that of bare\.jsonl.*traces\.cut"):
        load_trace(bare)


@pytest.mark.example
def test_a_stretch_begins_at_zero_and_twice_as_fast_takes_half_as_long(tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    write_trace(source, [request(i, 10.0 * i) for i in range(10)], source="x", command="x")
    flags = ["--from", "20", "--to", "60", "--faster", "2", "-o", str(tmp_path / "o.jsonl")]
    assert cut([str(source), *flags]) == 0
    found = load_trace(tmp_path / "o.jsonl")
    assert found.request_id == ["r2", "r3", "r4", "r5"]
    assert found.arrival_s.tolist() == [0.0, 5.0, 10.0, 15.0]


@pytest.mark.law
@given(requests=traffic(), users=some.floats(0.2, 5.0), seed=some.integers(0, 99))
def test_users_are_whole_copies_and_a_part_with_sessions_whole(
    requests: list[Request], users: float, seed: int
) -> None:
    try:
        found = superpose(requests, users, seed=seed)
    except ValueError:
        assert users < 1
        return
    copies = Counter(r.request_id.partition("+")[2] for r in found)
    whole = int(users)
    assert all(copies[str(k) if k else ""] == len(requests) for k in range(whole))
    assert len({r.request_id for r in found}) == len(found)
    times = [r.arrival_s for r in found]
    assert times == sorted(times)
    assert requests[0].arrival_s - 1e-5 <= min(times)
    assert max(times) <= requests[-1].arrival_s + 1e-5
    sessions = Counter(r.session_id for r in requests if r.session_id)
    for session, count in Counter(r.session_id for r in found if r.session_id).items():
        assert count == sessions[session.partition("+")[0]]
    if users >= 1:
        assert [r for r in found if "+" not in r.request_id] == requests


@pytest.mark.law
@given(requests=traffic(), seed=some.integers(0, 99))
def test_copies_share_the_applications_blocks_and_no_users(
    requests: list[Request], seed: int
) -> None:
    found = superpose(requests, 2.0, seed=seed)
    senders: dict[object, set[str]] = {}
    for r in requests:
        for block in r.prefix_hashes or ():
            senders.setdefault(block, set()).add(r.session_id or r.request_id)
    for r in found:
        for block in r.prefix_hashes or ():
            if r.request_id.endswith("+1"):
                assert (block in senders) == (len(senders.get(block, ())) > 1)


@pytest.mark.law
def test_a_copys_session_that_waits_for_answers_keeps_its_turns_in_order() -> None:
    requests = [
        Request(
            request_id=f"{session}{turn}", arrival_s=100.0 * session + 30.0 * turn,
            prompt_tokens=5, output_tokens=2, session_id=f"s{session}",
            delay_s=30.0 if turn else None,
        )
        for session in range(6)
        for turn in range(3)
    ]  # fmt: skip
    for seed in range(20):
        starts: dict[str, list[float]] = {}
        for request in superpose(requests, 3.0, seed=seed):
            starts.setdefault(request.session_id or "", []).append(request.arrival_s)
            assert (request.delay_s is None) == (len(starts[request.session_id or ""]) == 1)
        assert all(np.diff(times) == pytest.approx(30.0) for times in starts.values())


@pytest.mark.law
def test_more_users_are_smoother_than_the_same_bursts_compressed() -> None:
    """Index of dispersion of counts per second: superposed bursts add up only by chance."""
    rng = np.random.default_rng(1)
    times = np.sort(np.concatenate([60.0 * b + rng.uniform(0, 5, 40) for b in range(60)]))
    requests = [request(i, float(t)) for i, t in enumerate(times)]

    def dispersion(at_s: np.ndarray) -> float:
        counts = np.bincount((at_s / 1.0).astype(int), minlength=int(at_s[-1]) + 1)
        return float(counts.var() / counts.mean())

    users = np.array([r.arrival_s for r in superpose(requests, 4.0, seed=3)])
    assert dispersion(users) < 0.5 * dispersion(times / 4.0)
    assert users.size == 4 * times.size
    assert SHIFT_S > 60.0


@pytest.mark.law
@given(first=traffic(), second=traffic())
def test_merged_traces_run_side_by_side_and_share_nothing(
    first: list[Request], second: list[Request]
) -> None:
    found = merge(first, second)
    assert len(found) == len(first) + len(second)
    assert len({r.request_id for r in found}) == len(found)
    ours = {r.session_id for r in found if "@" not in r.request_id}
    theirs = {r.session_id for r in found if "@" in r.request_id}
    assert not (ours & theirs) - {None}


@pytest.mark.example
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--from", "9", "--to", "3"], "give 0 <= from < to"),
        (["--from", "1e6"], "no request arrives then"),
        (["--first", "0"], "must be at least 1"),
        (["--users", "0"], "users 0.0: give a number above 0"),
        (["--users", "1e9"], "1000 at most"),
        (["--faster", "1e308"], "between 1e-6 and 1e6"),
        (["--seed", "-1"], "must be 0 or more"),
    ],
)
def test_what_cannot_be_cut_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    out = tmp_path / "o.jsonl"
    assert cut([str(FOLDER / "chat.jsonl"), "-o", str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.example
def test_no_command_writes_onto_its_input_or_over_another_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "prod.csv"
    source.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,374,44\n")
    before = source.read_bytes()
    assert convert([str(source), "-o", str(source)]) == 2
    assert "is the input, and would be lost" in capsys.readouterr().err
    (tmp_path / "link.jsonl").symlink_to(source)
    assert convert([str(source), "-o", str(tmp_path / "link.jsonl")]) == 2
    assert source.read_bytes() == before
    made = ["--minutes", "1", "-o", str(tmp_path / "m.jsonl")]
    assert synthesize(made) == 0
    assert cut([str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "m.jsonl")]) == 2
    kept = (tmp_path / "m.jsonl").read_bytes()
    assert synthesize(made) == 0  # the same bytes: nothing is lost
    assert synthesize([*made, "--seed", "1"]) == 2
    assert "exists and holds something else; give --force" in capsys.readouterr().err
    assert (tmp_path / "m.jsonl").read_bytes() == kept
    assert synthesize([*made, "--seed", "1", "--force"]) == 0
    assert (tmp_path / "m.jsonl").read_bytes() != kept


@pytest.mark.example
def test_gzip_is_read_wherever_a_trace_or_its_source_is(tmp_path: Path) -> None:
    source = tmp_path / "a.csv.gz"
    text = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,374,44\n"
    source.write_bytes(gzip.compress(text))
    assert convert([str(source), "-o", str(tmp_path / "a.jsonl")]) == 0
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert load_trace(packed).name == "b"
    assert read_requests(packed)[0] == read_requests(tmp_path / "a.jsonl")[0]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged gzip"):
        load_trace(packed)
    assert msgspec.json.decode((tmp_path / "a.jsonl").read_bytes())["prompt_tokens"] == 374
