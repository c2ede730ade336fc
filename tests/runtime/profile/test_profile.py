"""The profiler: what it asks of a server, what it refuses to believe, and what it fits.

The servers here are stand-ins of a few lines that answer as both lanes do, with step times by a
formula that the cost model then has to show; a real one is profiled at the end.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable, load_sglang_table
from sglang_dspark.runtime.profile import command as profile
from sglang_dspark.runtime.profile.fit import DecodePoint, PrefillPoint, fit
from sglang_dspark.runtime.profile.grid import Grid, Journal, Limits, grid_of
from sglang_dspark.runtime.profile.lanes import built_in_steps, worker_steps
from sglang_dspark.runtime.profile.nvml import gpu_facts
from sglang_dspark.runtime.worker.control import COLUMNS, Control
from tests.logs.step_records import random_record

GAMMA = 7
PREFILL_TOKEN_S = 20e-6


def forward_s(requests: int, tokens: int, context: int) -> float:
    """The formula behind every stand-in."""
    return 0.002 + 0.0001 * requests + 0.00005 * tokens + 1e-7 * context


def draft_s(requests: int) -> float:
    """Of a block."""
    return 0.0005 + 0.00002 * requests


class StandIn:
    """A server that decodes by formula: as many steps as are looked for, on a clock of its own."""

    def __init__(self, kind: str, *, ignores: bool = False, flat: bool = False) -> None:
        self.kind, self.ignores, self.flat = kind, ignores, flat
        self.length: int | None = None
        self.fraction: float | None = None
        self.requests, self.prompt, self.clock_s, self.number = 0, 0, 100.0, 0
        self.held = threading.Event()
        self.rows: list[list[Any]] = []
        self.records: list[dict[str, Any]] = []
        self.asked: list[Any] = []

    def decode(self, steps: int) -> None:
        """Advance."""
        requests = self.requests
        for _ in range(steps if requests else 0):
            length = GAMMA if self.length is None or self.ignores else self.length
            budget = requests * length
            if self.fraction is not None and not self.ignores:
                budget = int(self.fraction * requests * GAMMA)
            tokens, context = requests + budget, requests * self.prompt
            busy = 0.004 if self.flat else forward_s(requests, tokens, context)
            wall = busy + draft_s(requests) + 0.0003
            self.clock_s += wall
            self.number += 1
            self.rows.append(
                [self.number, self.clock_s, requests, tokens, tokens, context, 0,
                 draft_s(requests), 0.0001, busy - 0.0002, 0.0002, "ragged", True]
            )  # fmt: skip
            self.records.append(
                {"forward_ct": self.number, "bs": requests, "budget": budget,
                 "num_verify_tokens": tokens, "step_cpu_ms": 1e3 * wall,
                 "draft_gpu_ms": 1e3 * draft_s(requests), "target_verify_gpu_ms": 1e3 * busy}
            )  # fmt: skip

    def info(self) -> dict[str, Any]:
        """/server_info."""
        self.decode(12)
        state: dict[str, Any] = {
            "memory_usage": {"weight": 1.5, "kvcache": 2.0, "token_capacity": 100_000},
            "effective_max_running_requests_per_dp": 16,
        }
        if self.kind == "worker":
            state["dspark_control"] = {
                "force_length": self.length,
                "gamma": GAMMA,
                "columns": list(COLUMNS),
                "steps": self.rows[-512:],
            }
        elif self.kind == "built-in":
            state["dspark_info_record"] = {
                "gamma": GAMMA,
                "components": ["core", "step_cpu_time", "draft_gpu_time"],
                "records": self.records,
            }
        return {
            "model_path": "/models/stand-in",
            "version": "0.0",
            "dtype": "float32",
            "tp_size": 1,
            "context_length": 4096,
            "chunked_prefill_size": 2048,
            "internal_states": [state],
        }

    def answer(self, path: str, body: Any) -> Any:
        """Any POST."""
        if path == "/set_internal_state":
            asked = body["server_args"]
            if self.kind == "built-in" and None in asked.values():
                raise ValueError("Input should be an instance of SetInternalStateReq")
            self.asked.append(asked)
            self.length = asked.get("dspark_force_length", self.length)
            self.fraction = asked.get("dspark_force_budget_frac", self.fraction)
            if asked.get("dspark_clear_info_records"):
                self.records.clear()
            return [{"updated": True}]
        if path == "/abort_request":
            self.held.set()
            return {}
        prompts, counts = body["input_ids"], [p["max_new_tokens"] for p in body["sampling_params"]]
        took = PREFILL_TOKEN_S * len(prompts[-1])
        if counts == [1]:
            self.clock_s += took
        else:
            # The first of several only keeps the door open.
            self.requests, self.prompt = max(len(prompts) - 1, 1), len(prompts[-1])
            self.held.clear()
            self.held.wait(60)
            self.requests = 0
        return [{"meta_info": {"e2e_latency": took}} for _ in prompts]


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Its URL."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Silence."""

        def reply(self, value: Any) -> None:
            """As JSON."""
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.reply(stand_in.info() if self.path == "/server_info" else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.reply(stand_in.answer(self.path, body))
            except ValueError as error:
                self.send_error(400, str(error))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stand_in.held.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins answer at once: do not wait between looks."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))


@pytest.mark.example
@pytest.mark.parametrize("kind", ["worker", "built-in"])
def test_the_cost_model_of_a_formula_is_the_formula(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = StandIn(kind)
    out, sps, additive = (tmp_path / f"{name}.json" for name in ("costs", "sps", "additive"))
    with serving(stand_in) as url:
        status = profile.main(
            ["--url", url, "-o", str(out), "--steps", "6", "--quick",
             "--sps", str(sps), "--additive", str(additive)]
        )  # fmt: skip
    assert status == 0
    model = load_cost_model(out)
    assert model.provenance.origin == "measured"
    assert model.fit_error is not None
    assert model.fit_error.max_rel < 0.02
    assert model.valid_range.requests == (1, 16)
    assert model.valid_range.tokens == (1, 16 * (GAMMA + 1))
    assert model.kv_pool_tokens == 100_000
    tables = model.tables(128, 16)
    reference = tables.context_reference_tokens
    if kind == "worker":
        assert math.isclose(tables.draft_s[4], draft_s(4), rel_tol=0.02)
        priced = tables.verify_s[32] + tables.request_s[4]
        assert math.isclose(priced, forward_s(4, 32, int(4 * reference)), rel_tol=0.05)
    assert model.prefill is not None
    assert math.isclose(model.prefill.token_s, PREFILL_TOKEN_S, rel_tol=0.05)
    assert isinstance(load_sglang_table(sps), SpsTable)
    assert isinstance(load_sglang_table(additive), SpsAdditiveTable)
    if kind == "worker":
        assert stand_in.length is None
    else:  # takes no null: the next best thing, said
        assert stand_in.fraction == 1.0
        assert "until you restart it" in capsys.readouterr().err


@pytest.mark.example
def test_a_forced_budget_without_effect_is_refused(tmp_path: Path) -> None:
    with (
        serving(StandIn("built-in", ignores=True)) as url,
        pytest.raises(ValueError, match=r"has no effect there.*SPS table"),
    ):
        profile.main(["--url", url, "-o", str(tmp_path / "costs.json"), "--steps", "4"])
    assert not (tmp_path / "costs.json").exists()


@pytest.mark.example
def test_flat_times_are_written_only_when_told_to(tmp_path: Path) -> None:
    out = tmp_path / "costs.json"
    words = ["-o", str(out), "--steps", "4", "--quick"]
    with serving(StandIn("worker", flat=True)) as url:
        with pytest.raises(ValueError, match=r"flat: .*--anyway"):
            profile.main(["--url", url, *words])
        assert not out.exists()
        profile.main(["--url", url, *words, "--anyway"])
    model = load_cost_model(out)
    assert model.additive is not None
    assert "flat: " in model.additive.note


@pytest.mark.example
def test_a_point_that_was_disturbed_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "costs.json"
    original = profile.Profiler.point
    seen: list[tuple[int, int, int]] = []

    def disturbed(self: Any, held: Any, batch: Any, length: int) -> DecodePoint:
        found = original(self, held, batch, length)
        seen.append((batch.requests, batch.prompt_tokens, length))
        first = seen.count(seen[-1]) == 1
        slow = first and batch.requests == 4 and length == 3
        return DecodePoint(**{**vars(found), "forward_s": found.forward_s * (3 if slow else 1)})

    monkeypatch.setattr(profile.Profiler, "point", disturbed)
    with serving(StandIn("worker")) as url:
        assert profile.main(["--url", url, "-o", str(out), "--steps", "4", "--quick"]) == 0
    error = load_cost_model(out).fit_error
    assert error is not None
    assert error.max_rel < 0.02
    assert len(seen) - len(set(seen)) == 2  # one for each context


@pytest.mark.example
def test_a_server_without_steps_says_what_to_start(tmp_path: Path) -> None:
    with serving(StandIn("plain")) as url, pytest.raises(ValueError, match="--speculative-alg"):
        profile.main(["--url", url, "-o", str(tmp_path / "costs.json")])


@pytest.mark.example
def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "costs.json"
    stand_in = StandIn("worker")
    words = ["-o", str(out), "--steps", "4", "--quick"]
    measured: list[int] = []
    original = profile.Profiler.point

    def counted(self: Any, held: Any, batch: Any, length: int) -> Any:
        if len(measured) == 4:
            measured.append(-1)
            raise KeyboardInterrupt
        measured.append(length)
        return original(self, held, batch, length)

    monkeypatch.setattr(profile.Profiler, "point", counted)
    with serving(stand_in) as url:
        with pytest.raises(KeyboardInterrupt):
            profile.main(["--url", url, *words])
        assert stand_in.length is None
        journal = Path(f"{out}.journal")
        lines = journal.read_text().splitlines()
        assert len(lines) == 1 + 4
        journal.write_text("\n".join(lines) + '\n{"decode": {"requ')  # killed while writing
        profile.main(["--url", url, *words])
        assert load_cost_model(out).name == "costs"
        again = measured[5:]
        profile.main(["--url", url, *words])
        assert len(measured) == 5 + len(again)  # nothing is measured a third time
        with pytest.raises(ValueError, match="delete the journal"):
            profile.main(["--url", url, "-o", str(out), "--steps", "5", "--quick"])
    state = stand_in.info()["internal_states"][0]
    limits = profile.limits_of(stand_in.info(), state, GAMMA)
    grid = grid_of(limits, quick=True, answer_tokens=2 * 20 * (GAMMA + 1))
    assert len(again) + 4 == grid.points - len(grid.prefill_tokens)


# The fit.


def decode_points(noise: float = 0.0) -> list[DecodePoint]:
    """A grid over the formula."""
    rng = np.random.default_rng(0)
    return [
        DecodePoint(
            requests=requests,
            length=length,
            tokens=requests * (1 + length),
            context_tokens=requests * context,
            steps=20,
            forward_s=forward_s(requests, requests * (1 + length), requests * context)
            * (1 + noise * rng.standard_normal()),
            draft_s=draft_s(requests),
            host_s=0.0002,
            spread=0.01,
        )
        for requests in (1, 2, 4, 8, 16)
        for length in (0, 1, 3, 7)
        for context in (128, 1024)
    ]


PREFILL = [PrefillPoint(tokens=n, chunks=1, seconds=0.001 + 2e-5 * n) for n in (16, 64, 256, 1024)]


@pytest.mark.law
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_fit_is_as_good_as_the_noise_and_never_decreases(noise: float) -> None:
    fitted = fit(decode_points(noise), PREFILL, gamma=GAMMA)
    assert fitted.error.median_rel <= 0.005 + noise
    for values in (fitted.additive.alpha_s, fitted.additive.theta_s):
        assert (np.diff(values) >= 0).all()
    assert not fitted.flaws
    assert math.isclose(fitted.context.token_s, 1e-7, rel_tol=0.02 + 15 * noise)
    assert math.isclose(fitted.prefill.base_s, 0.001, rel_tol=0.01)


@pytest.mark.example
def test_what_falls_beyond_noise_is_a_flaw() -> None:
    points = decode_points()
    points = [
        DecodePoint(**{**vars(p), "forward_s": p.forward_s * (0.7 if p.length == 7 else 1.0)})
        for p in points
    ]
    assert any("non-monotone" in flaw for flaw in fit(points, PREFILL, gamma=GAMMA).flaws)


def shaped_points() -> list[DecodePoint]:
    """As the worker on a GPU: all drafts from a graph, anything else eagerly, which takes 12 ms."""
    return [
        replace(
            p,
            ragged=p.length != GAMMA,
            forward_s=p.forward_s if p.length == GAMMA else max(0.012, p.forward_s + 0.0005),
        )
        for p in decode_points()
    ]


@pytest.mark.law
def test_ragged_steps_that_run_eagerly_have_a_price_of_their_own_and_are_no_flaw() -> None:
    fitted = fit(shaped_points(), PREFILL, gamma=GAMMA)
    assert not fitted.flaws
    assert fitted.ragged is not None
    assert fitted.ragged.floor_s == pytest.approx(0.012, rel=0.02)
    assert fitted.ragged.tiers_tokens == ()
    assert fitted.error.median_rel < 0.02
    # The same points without their shapes: what a planner would have been told before.
    blind = fit([replace(p, ragged=False) for p in shaped_points()], PREFILL, gamma=GAMMA)
    assert blind.ragged is None
    assert blind.error.median_rel > 3 * fitted.error.median_rel


@pytest.mark.law
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("gamma", [1, 5, 15])
def test_a_grid_fits_into_the_server(quick: bool, gamma: int) -> None:
    limits = Limits(
        gamma=gamma, requests=100, context_tokens=2000, pool_tokens=40_000, chunk_tokens=512
    )
    grid: Grid = grid_of(limits, quick=quick, answer_tokens=300)
    for batch in grid.batches:
        assert batch.requests * (batch.prompt_tokens + 300) <= limits.pool_tokens
        assert set(batch.lengths) <= set(range(gamma + 1))
    assert max(grid.prefill_tokens) <= limits.chunk_tokens
    assert len({b.prompt_tokens for b in grid.batches}) == 2
    assert grid.points == len(
        {(b.requests, b.prompt_tokens, k) for b in grid.batches for k in b.lengths}
    ) + len(set(grid.prefill_tokens))


@pytest.mark.example
def test_a_broken_line_in_the_middle_of_a_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"identity": {"a": 1}}\nnonsense\n{"prefill": []}\n')
    with pytest.raises(ValueError, match="journal:2: not JSON"):
        Journal(path, {"a": 1})


# What servers say.


@pytest.mark.example
def test_time_between_steps_of_different_batches_is_no_step_time() -> None:
    def row(step: int, end_s: float, requests: int) -> list[Any]:
        return [step, end_s, requests, 8, 8, 64, 1, 0.1, 0.1, 0.1, 0.1, "uniform", False]

    rows = [row(1, 10.0, 2), row(2, 10.5, 2), row(3, 11.5, 3), row(5, 12.0, 3)]
    walls = [step.wall_s for step in worker_steps(list(COLUMNS), rows)]
    assert walls[1] == 0.5
    assert [math.isnan(wall) for wall in walls] == [True, False, True, True]


@pytest.mark.example
def test_a_record_without_times_has_no_times() -> None:
    (step,) = built_in_steps([{"forward_ct": 3, "bs": 2, "num_verify_tokens": 9, "budget": 7}])
    assert step.planned_tokens == step.computed_tokens == 9
    assert math.isnan(step.wall_s)
    assert math.isnan(step.verify_s)


@pytest.mark.example
def test_nvml_says_why_it_is_silent() -> None:
    facts = gpu_facts()
    assert facts["gpus"] or facts["note"]


class PlannerStub:
    """What a control touches of a planner."""

    class planner:
        gamma = GAMMA

    forced_length: int | None = None


@pytest.mark.example
def test_the_control_remembers_only_when_asked() -> None:
    stub = PlannerStub()
    control = Control(stub)  # type: ignore[arg-type]
    control.observe(random_record(1, step=1, rows=3))
    assert control.shown()["steps"] == []
    control.apply({"dspark_recent_steps": 2, "dspark_force_length": 3})
    for number in (2, 3, 4):
        control.observe(random_record(number, step=number, rows=3))
    assert stub.forced_length == 3
    assert [row[0] for row in control.shown()["steps"]] == [3, 4]
    assert len(control.shown()["columns"]) == len(control.shown()["steps"][0])
    for wrong in ({"dspark_force_length": GAMMA + 1}, {"dspark_force_length": True},
                  {"dspark_recent_steps": -1}):  # fmt: skip
        with pytest.raises(ValueError, match="must be a whole number"):
            control.apply(wrong)
    control.apply({"dspark_force_length": None})
    assert stub.forced_length is None
    json.dumps(control.shown())
