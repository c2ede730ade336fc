"""The command on a server that obeys the simulator's law: what it predicts is what was measured."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sglang_dspark.core.policy import FixedLength, PolicyFile, save_policy
from simulator.twin import command
from simulator.twin.judge import BESIDE, TOLERANCE, Verdict, cut_of
from simulator.twin.prefixes import grain_of, refined
from simulator.twin.timings import Seen, Segment
from simulator.twin.words import verdict_line
from tests.simulator.fit.logged_scenes import PLANNING, TRUTH, planned_log
from tests.simulator.fit.recorded_scenes import SERVER, write_recording

PRICES = dataclasses.replace(
    TRUTH,
    prefill=dataclasses.replace(TRUTH.prefill, base_s=0.004, token_s=2e-4, pair_s=1e-8),  # type: ignore[type-var]
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four minutes of random arrivals at half of the capacity, prompts cached and not."""
    folder = tmp_path_factory.mktemp("recorded")
    log = planned_log(
        PLANNING, PRICES, steps=6000, rounds_each=12, rate=8.0, noise=0.02, cached=True
    )
    write_recording(folder, log, planning=PLANNING)
    return folder


def twin(folder: Path, *flags: str) -> int:
    return command.main(
        [str(folder / "steps"), "--requests", str(folder / "mine.jsonl"), "--seeds", "2", *flags]
    )


@pytest.mark.law
def test_a_server_that_obeys_the_law_is_predicted_from_the_command_alone(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every judged figure within its tolerance, status 0, and every policy spoken of."""
    policy = tmp_path / "short.json"
    save_policy(policy, PolicyFile(policy=FixedLength(length=2)))
    out = tmp_path / "twin"
    status = twin(recorded, "--policy-file", str(policy), "-o", str(out))
    text = capsys.readouterr().out
    found = json.loads((out / "twin.json").read_text())
    errors = {name: found["predicted"][name] / found["measured"][name] - 1 for name in TOLERANCE}
    assert status == 0, text
    assert all(abs(errors[name]) <= bound for name, bound in TOLERANCE.items()), errors
    assert found["drift"] == pytest.approx([1.0] * 8, abs=0.03)
    assert [row["policy"] for row in found["policies"]][:2] == ["short", "none"]
    assert [row["policy"] for row in found["policies"] if row["served"]] == ["global"]
    assert found["engine"]["max_running_requests"] == 16
    assert found["engine"]["kv_pool_tokens"] == 100_000
    assert "WITHIN TOLERANCE" in text
    assert "NOTE: short did not serve this log, global did" in text
    assert "drift of the machine" in text
    assert (out / "cost_model.json").exists()


@pytest.mark.law
def test_another_engine_than_the_servers_is_beyond_tolerance(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With four places instead of sixteen requests wait that did not: status 1, and said."""
    other = tmp_path / "server.json"
    other.write_text(json.dumps(SERVER | {"running_requests_limit": [4]}))
    assert twin(recorded, "--server", str(other), "--alone") == 1
    assert "BEYOND TOLERANCE: " in capsys.readouterr().out


@pytest.mark.example
def test_wrong_input_is_one_sentence(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: str, folder: Path = recorded, *flags: str) -> None:
        assert twin(folder, *flags) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert words in error
        assert error.count("\n") == 1

    refused("must lie between", recorded, "--fit-share", "0")
    refused("must be 1 to 100", recorded, "--seeds", "0")
    refused("no policy 'fast'", recorded, "--policy-file", "fast")
    copy = tmp_path / "copy"
    shutil.copytree(recorded, copy)
    (copy / "steps" / "server.json").unlink()
    refused("holds no server.json", copy)
    shutil.copy(recorded / "steps" / "server.json", copy / "steps")
    times = copy / "mine.measured.jsonl"
    rows = [json.loads(line) for line in times.read_text().splitlines()]
    times.write_text("".join(json.dumps(row | {"received_s": None}) + "\n" for row in rows))
    refused("make it again with dspark traces record --from", copy)
    times.unlink()
    refused("has no .measured.jsonl beside it", copy)


def seen(number: int, sent_s: float, end_s: float) -> Seen:
    return Seen(
        rid=str(number), prompt_tokens=10, prefix=(), sent_s=sent_s, first_s=sent_s, end_s=end_s,
        output_tokens=2, cached_tokens=0,
    )  # fmt: skip


@pytest.mark.example
def test_the_cut_is_where_nothing_runs() -> None:
    """Near the share asked for; where something always runs, at the share itself."""
    busy = Segment(
        policy="p", load="l", third=0, steps=[],
        seen=[seen(n, float(n), n + 1.5) for n in range(100)],
    )  # fmt: skip
    assert cut_of(busy, 1 / 3) == 33
    # Nothing of the requests before runs when 36 comes, nor when 37 does.
    free = dataclasses.replace(
        busy,
        seen=[seen(n, float(n), n + (0.5 if n in (35, 36) else 1.5)) for n in range(100)],
    )
    assert cut_of(free, 1 / 3) == 36
    with pytest.raises(ValueError, match="at least 20 are needed"):
        cut_of(free, 0.1)


@pytest.mark.example
def test_a_saturated_server_is_not_judged_by_its_queue() -> None:
    figures: dict[str, Any] = dict.fromkeys((*TOLERANCE, *BESIDE), 1.0)
    late = figures | {"ttft_p50_ms": 2.0}
    verdict = Verdict(
        measured=figures,
        predicted=late,
        at_speed=late,
        drift=[1.0],
        offered_req_s=0.95,
        capacity_req_s=1.0,
    )
    assert verdict.missed == []
    calm = dataclasses.replace(verdict, offered_req_s=0.5)
    assert calm.missed == ["ttft_p50_ms"]
    slow = dataclasses.replace(verdict, predicted=figures | {"output_tok_s": float("nan")})
    assert slow.missed == ["output_tok_s"]


@pytest.mark.law
def test_finer_blocks_share_what_was_measured() -> None:
    """Two prompts share 100 of 150 tokens: one whole recorded block, and 36 tokens beyond it."""
    found = refined(
        [150, 150, 40, 200], [["a", "b"], ["a", "c"], [], ["a", "b", "d"]], [0, 100, 20, 140],
        block_tokens=64, grain=1,
    )  # fmt: skip
    first, second, third, fourth = found.names
    assert [len(names) for names in found.names] == [150, 150, 40, 200]
    assert first[:100] == second[:100]
    assert not set(first[100:]) & set(second[100:])
    assert second[:20] == third[:20]
    assert third[20] != second[20]
    # Both whole blocks, and 12 tokens of what the first one's prompt went on with.
    assert fourth[:140] == first[:140]
    assert fourth[140] not in first
    assert found.lost == 0
    assert len({name for names in found.names for name in names}) == 150 + 50 + 20 + 60


@pytest.mark.example
def test_tokens_that_no_prompt_held_are_counted() -> None:
    """A second turn finds the first one's answer in the cache; a replay does not."""
    found = refined([70, 300], [["a"], ["a", "b", "c", "d"]], [0, 200], block_tokens=64, grain=1)
    assert found.names[0] == found.names[1][:70]
    assert found.lost == 130


@pytest.mark.example
def test_blocks_are_as_fine_as_the_pages_and_the_number_of_prompts_allow() -> None:
    assert grain_of([100], page_size=1, block_tokens=64) == 1
    assert grain_of([100], page_size=16, block_tokens=64) == 16
    assert grain_of([100], page_size=64, block_tokens=64) == 64
    assert grain_of([10**8], page_size=1, block_tokens=64) == 8


@pytest.mark.example
def test_a_miss_on_a_machine_that_drifted_is_not_the_simulators() -> None:
    figures: dict[str, Any] = dict.fromkeys((*TOLERANCE, *BESIDE), 1.0)
    missed = figures | {"tpot_p50_ms": 2.0}
    verdict = Verdict(
        measured=figures,
        predicted=missed,
        at_speed=missed,
        drift=[0.9, 1.25],
        offered_req_s=0.5,
        capacity_req_s=1.0,
    )
    assert "moved by up to 25%" in verdict_line(verdict)
    steady = dataclasses.replace(verdict, drift=[0.97, 1.02])
    assert verdict_line(steady) == "BEYOND TOLERANCE: TPOT p50, ms +100.0%"
