"""A policy is one place: what a dataclass says of itself is found wherever policies are listed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.capacity.command import main as capacity
from sglang_dspark.core import tables
from sglang_dspark.core.axis import Axis
from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import (
    POLICIES,
    FixedLength,
    Main,
    Policy,
    PolicyFile,
    load_policy,
    parse_policy,
    policy_label,
    register,
    save_policy,
)
from sglang_dspark.core.state import BatchState
from sglang_dspark.runtime import settings
from simulator.run import main as run
from simulator.slo import PRESETS
from simulator.study.config import RunConfig
from simulator.tune.command import main as tune
from simulator.tune.space import families

CHAT = Path(__file__).resolve().parents[1] / "traces" / "chat.jsonl"


@dataclass(frozen=True, kw_only=True)
class FewTokens(Policy):
    """Decides as ``fixed`` does, by a parameter of another name and default."""

    name = "few_tokens"
    summary = "the first TOKENS draft tokens of every request, one unless told"
    code = tables.FIXED
    main = Main("tokens", int, unsaid=1)
    reads_confidences = False
    needs_prices = False
    decides_early = True
    axes = (Axis(name="tokens", low=1, high=64, whole=True, drafts=True),)

    tokens: int = 1

    def table_fields(self, cost_model: CostModel, gamma: int, max_requests: int) -> dict[str, Any]:
        return {"length": self.tokens}


@pytest.fixture(autouse=True)
def few_tokens() -> Iterator[None]:
    """It is there while a test of this page runs."""
    register(FewTokens)
    yield
    del POLICIES[FewTokens.name]


@pytest.mark.example
def test_it_is_named_on_the_command_line_and_in_files(tmp_path: Path) -> None:
    assert parse_policy("few_tokens") == PolicyFile(policy=FewTokens())
    two = parse_policy("few_tokens:2")
    assert two.policy == FewTokens(tokens=2)
    assert [policy_label(file.policy) for file in (parse_policy("few_tokens"), two)] == [
        "few_tokens",
        "few_tokens:2",
    ]
    save_policy(tmp_path / "policy.json", two)
    assert load_policy(tmp_path / "policy.json") == two
    with pytest.raises(ValueError, match="did you mean 'few_tokens'"):
        parse_policy("few_token")
    with pytest.raises(ValueError, match="few_tokens:x: tokens: invalid literal"):
        parse_policy("few_tokens:x")


@pytest.mark.example
def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="a policy 'few_tokens' already; give this one another"):
        register(FewTokens)


@pytest.mark.law
def test_it_is_replayed_and_equals_the_policy_it_decides_as(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in CHAT.read_text().splitlines()[:30]]
    for row in rows:
        row.pop("prefix_hashes", None)
    trace = tmp_path / "short.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--policy", "few_tokens", "--policy", "fixed:1", "--policy", "fixed:2"]
    assert run([str(trace), "--jobs", "1", "--out", str(tmp_path / "out"), *words]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    names, figures = [], []
    for row in summary["policies"]:
        names.append(row.pop("policy"))
        figures.append(row)
    assert names == ["few_tokens", "fixed:1", "fixed:2"]
    assert figures[0] == figures[1] != figures[2]
    assert RunConfig(trace="any").policies == tuple(POLICIES)


@pytest.mark.example
def test_the_tuner_searches_what_it_says_may_vary() -> None:
    (family,) = families(["few_tokens"], 7, Calibration(), PRESETS["interactive"])
    built = [family.build(point).policy for point in family.draws()]
    assert built[0] == FewTokens()
    assert built[1:] == [FewTokens(tokens=tokens) for tokens in range(1, 8)]
    everything = families([], 7, Calibration(), PRESETS["interactive"])
    assert list(dict.fromkeys(family.policy for family in everything)) == list(POLICIES)


@pytest.mark.example
def test_a_server_asks_it_for_neither_prices_nor_confidences_and_obeys_it() -> None:
    def checked(policy: str, **changes: Any) -> settings.Deployment:
        values = {"gamma": 7, "has_confidence_head": True, "max_requests": 8}
        return settings.check(settings.Settings(policy=policy), **{**values, **changes})

    deployed = checked("few_tokens:3", has_confidence_head=False)
    assert not deployed.priced
    state = BatchState(
        logits=np.zeros((2, 7)),
        stale_logits=np.zeros((2, 7)),
        stale_age=np.zeros(2, dtype=np.int64),
        context_tokens=np.zeros(2, dtype=np.int64),
    )
    assert deployed.planner.plan(state).lengths.tolist() == [3, 3]
    assert deployed.planner.budget(state.stale_logits)[0] == 6
    with pytest.raises(ValueError, match=r"to none, fixed, threshold:0\.6 or few_tokens"):
        checked("global")
    with pytest.raises(ValueError, match="to none, fixed or few_tokens, or train the drafter"):
        checked("threshold", has_confidence_head=False)


@pytest.mark.example
@pytest.mark.parametrize("command", [run, tune, capacity])
def test_every_command_names_it_in_its_help(
    command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    assert FewTokens.name in capsys.readouterr().out


@pytest.mark.example
def test_the_server_names_it_in_its_help() -> None:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser)
    words = " ".join(parser.format_help().split())
    assert "goodput, few_tokens[:TOKENS], or a policy.json" in words
    assert "a policy other than none, fixed, threshold:0.6 or few_tokens needs one" in words


@pytest.mark.example
def test_facts_are_inherited_with_the_decision() -> None:
    """The shortest way to a policy: another default of one there is."""

    @dataclass(frozen=True, kw_only=True)
    class OneToken(FixedLength):
        name = "one_token"
        length: int | None = 1

    register(OneToken)
    try:
        assert parse_policy("one_token").policy == OneToken(length=1)
        assert not OneToken.needs_prices
        assert parse_policy("one_token:2").policy == OneToken(length=2)
    finally:
        del POLICIES["one_token"]
