"""The laptop run in its seconds-long variant, its stage runner, and what counts as reproduced."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.draft.demo.claims import claims, gap_slope, report
from sglang_dspark.draft.demo.command import build, main, trained_pair
from sglang_dspark.draft.demo.recipe import Stage, laptop, seconds, stages
from sglang_dspark.draft.demo.runner import needed, run_beside, stage_times
from sglang_dspark.draft.evaluation.reliability import acceptance
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.target import Target
from sglang_dspark.logs.rounds import Rounds
from tests.draft.evaluation.test_calibrate import synthetic


@pytest.mark.example
def test_the_seconds_long_run_goes_from_text_to_claims_and_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--recipe", "seconds", "--cache", str(tmp_path), "--workers", "0"]
    main(given)
    first = capsys.readouterr()
    assert "claims reproduced" in first.out
    assert "DSpark accepts longer drafts than Eagle3 (templated)" in first.out
    folder = tmp_path / seconds().key()
    every = stages(seconds())
    assert set(stage_times(folder, every)) == {stage.name for stage in every}
    found = json.loads((folder / "claims.json").read_text())
    assert len(found["claims"]) >= 8
    assert (folder / "conditional_acceptance.png").stat().st_size > 5_000
    assert (folder / "reliability-templated-T1.4.png").exists()
    assert (folder / "templated-calibration" / "sts-T1.4.json").exists()
    marks = {path: path.stat().st_mtime_ns for path in folder.glob("*.done.json")}
    main(given)
    second = capsys.readouterr()
    assert second.out.splitlines()[:-1] == first.out.splitlines()[:-1]
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    # The cached pair is what other suites load.
    where, checkpoint = trained_pair(seconds(), tmp_path, corpus="templated", workers=0)
    target = Target.from_pretrained(where)
    assert load_drafter(checkpoint, target=target).config.gamma == 3


@pytest.mark.example
def test_recipes_have_their_own_folders() -> None:
    changed = dataclasses.replace(laptop(), seed=1)
    assert len({laptop().key(), seconds().key(), changed.key()}) == 3


@pytest.mark.law
@pytest.mark.parametrize("recipe", [laptop(), seconds()], ids=["laptop", "seconds"])
def test_every_stage_comes_after_what_it_needs(recipe: object) -> None:
    done: set[str] = set()
    for stage in stages(recipe):  # type: ignore[arg-type]
        assert done.issuperset(stage.needs)
        assert stage.name not in done
        done.add(stage.name)


@pytest.mark.example
def test_only_what_a_goal_rests_on_is_made() -> None:
    chosen = needed(stages(laptop()), ["templated-dspark"])
    names = [stage.name for stage in chosen]
    assert names == ["templated-target", "templated-samples", "templated-dspark"]
    with pytest.raises(ValueError, match=r"no stage 'dspark'; there are stdlib-target"):
        build(laptop(), "unused", goals=["dspark"])


def copy_stage(source: str, goal: str, *needs: str) -> Stage:
    return Stage(name=goal, module="json.tool", arguments=(source, goal), needs=needs)


@pytest.mark.example
def test_stages_run_in_order_of_need_and_go_on_after_a_failure(tmp_path: Path) -> None:
    given = Stage(
        name="b",
        module="json.tool",
        arguments=("a.json", "b"),
        settings=("a.json", {"value": 1}),
    )
    chain = [given, copy_stage("b", "c", "b"), copy_stage("missing", "d", "b")]
    said: list[str] = []
    with pytest.raises(ValueError, match=r"stage d ended with status 2 .*missing.*run again"):
        run_beside(tmp_path, chain, said.append, workers=1)
    assert json.loads((tmp_path / "c").read_text()) == {"value": 1}
    assert len(said) == 2
    (tmp_path / "missing").write_text("{}")
    run_beside(tmp_path, chain, said.append)
    assert [line.split(":")[0] for line in said] == ["b", "c", "d"]
    assert set(stage_times(tmp_path, chain)) == {"b", "c", "d"}


def decaying(slope: float, seed: int) -> Rounds:
    """Rounds whose conditional acceptance falls by ``slope`` from position to position."""
    rng = np.random.default_rng(seed)
    chance = 0.8 - slope * np.arange(5)
    passed = rng.random((20_000, 5)) < chance
    accepted = passed.cumprod(axis=1).sum(axis=1)
    rows = np.arange(len(accepted))
    return Rounds(
        request=rows // 20,
        step=rows % 20,
        domain=np.full(len(rows), "stdlib"),
        logits=np.tile(np.log(chance / (1 - chance)), (len(rows), 1)) + rng.normal(0, 0.1, (1, 5)),
        accepted=accepted,
        temperature=np.ones(len(rows)),
    )


@pytest.mark.example
def test_the_slope_of_a_growing_gap_is_found_and_of_an_equal_one_is_not() -> None:
    flat, falling, other = (acceptance(decaying(s, i)) for i, s in enumerate((0.0, 0.05, 0.0)))
    slope, error = gap_slope(flat, falling)
    assert slope == pytest.approx(0.05, abs=3 * error)
    assert slope > 10 * error
    slope, error = gap_slope(flat, other)
    assert abs(slope) < 3 * error


@pytest.mark.example
def test_a_claim_is_reproduced_only_beyond_its_standard_error() -> None:
    from sglang_dspark.draft.evaluation.calibrate import fit_all

    good, bad = decaying(0.0, 0), decaying(0.1, 1)
    fits = {"stdlib": fit_all(synthetic(rounds=3_000, temperature=1, bias=-1.5, decode=1.4))}
    milliseconds = {"draft_head": 0.01, "verify": 1.0}

    def verdicts(dspark: Rounds, rest: Rounds) -> list[bool]:
        logs = {f"stdlib-{name}-T1": rest for name in ("no-markov", "dflash", "eagle3")}
        logs |= {"stdlib-dspark-T1": dspark, "stdlib-dspark-T0.7": rest}
        found = claims(rounds=logs, fits=fits, batch_round_ms=milliseconds)
        assert ("NOT reproduced" in report(found)) == any(not one.reproduced for one in found)
        return [one.reproduced for one in found]

    # Length, growth, DFlash, Eagle3; ranking fails; threshold, calibration and overhead hold.
    assert verdicts(good, bad) == [True, True, True, True, False, True, True, True]
    assert verdicts(good, good)[:4] == [False] * 4
    assert verdicts(bad, good)[:4] == [False] * 4
