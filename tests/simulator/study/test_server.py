"""``server.json`` is the engine of a replay, and what it cannot say is not invented."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.capacity import command as capacity
from simulator import run
from simulator.engine.config import EngineConfig
from simulator.fit import from_server
from simulator.study.config import RunConfig
from simulator.study.server import engine_of, server_settings
from tests.simulator.fit.recorded_scenes import SERVER
from tests.simulator.replay_scenes import cost_model
from traces import Request, write_trace


def told(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({**SERVER, **changes}))
    return path


@pytest.mark.example
def test_what_the_recorder_knows_is_the_engine(tmp_path: Path) -> None:
    path = told(tmp_path, page_size=16, chunked_prefill_size=512, prefill_decode_interval=4)
    found = server_settings(path)
    assert found.engine == EngineConfig(
        max_running_requests=16,
        chunked_prefill_size=512,
        max_prefill_tokens=16384,
        prefill_decode_interval=4,
        min_free_slots_delay=1,
        disable_overlap_schedule=True,
        page_size=16,
        kv_pool_tokens=100_000,
    )
    assert (found.speculative, found.not_simulated) == (True, ())
    assert server_settings(tmp_path).engine == found.engine
    assert engine_of(None) is None
    assert engine_of(str(path)) == found.engine


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"disable_radix_cache": True}, "enable_prefix_cache", False),
        ({"chunked_prefill_size": -1}, "chunked_prefill_size", 1 << 30),
        ({"running_requests_limit": None}, "max_running_requests", 16),
        ({"running_requests_limit": None, "max_running_requests": None},
         "max_running_requests", 48),
        # SGLang's own choice, where DSPARK is its own; the worker before it waits for no places.
        ({"min_free_slots_delay": None}, "min_free_slots_delay", None),
        ({"min_free_slots_delay": None, "version": "0.5.15.post1"}, "min_free_slots_delay", 1),
        ({"min_free_slots_delay": None, "version": "0.5.15.post1", "speculative_algorithm": None},
         "min_free_slots_delay", None),
        # Speculation switches mixed chunks off.
        ({"enable_mixed_chunk": True}, "enable_mixed_chunk", False),
        ({"enable_mixed_chunk": True, "speculative_algorithm": None}, "enable_mixed_chunk", True),
        ({"memory_usage": None}, "kv_pool_tokens", 100_000),
    ],
)  # fmt: skip
def test_servers_differ(tmp_path: Path, changes: Any, field: str, value: Any) -> None:
    engine = server_settings(told(tmp_path, **changes)).engine
    assert getattr(engine, field) == value


@pytest.mark.example
def test_what_is_simulated_otherwise_is_said(tmp_path: Path) -> None:
    path = told(tmp_path, dp_size=2, schedule_policy="lpm")
    lines = server_settings(path).not_simulated
    assert [any(word in line for line in lines) for word in ("ranks", "'lpm'")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine_of(str(path))
    assert [str(warning.message) for warning in caught] == list(lines)


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_usage": None, "max_total_num_tokens": None}, "tells no KV memory"),
        ({"running_requests_limit": None, "max_running_requests": None,
          "speculative_algorithm": None}, "tells no max_running_requests"),
        ({"page_size": "large"}, "page_size 'large' is no whole number"),
        ({"memory_usage": [{"token_capacity": 5}]}, "kv_pool_tokens 5 must be at least"),
    ],
)  # fmt: skip
def test_files_that_say_too_little_are_refused(tmp_path: Path, changes: Any, words: str) -> None:
    path = told(tmp_path, **changes)
    with pytest.raises(ValueError, match=words) as error:
        server_settings(path)
    assert str(path) in str(error.value)


@pytest.mark.example
def test_another_json_is_no_server(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"policies": []}')
    with pytest.raises(ValueError, match=r"is no server\.json; give the one"):
        server_settings(path)


@pytest.mark.filterwarnings("ignore:cost model")  # whose acceptance it is does not matter here
@pytest.mark.law
def test_a_recorded_server_is_replayed_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 34: 2,000 tokens of KV and eight places hold the traffic, since requests may generate
    128 tokens; admission that reserves 4,096 for each lets them in one after the other."""
    model = dataclasses.replace(cost_model(), memory=None)
    model.save(tmp_path / "fitted.json")
    server = told(
        tmp_path, running_requests_limit=[8], memory_usage=[{"token_capacity": 2000}]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1.0 / 12.0, 300))
    offered = 300 * 60 / arrivals[-1]

    def replayed(name: str, *flags: str, **fields: Any) -> dict[str, Any]:
        trace = tmp_path / f"{name}.jsonl"
        requests = [
            Request(
                request_id=str(number), arrival_s=float(at), prompt_tokens=60, output_tokens=60,
                **fields,
            )
            for number, at in enumerate(arrivals)
        ]  # fmt: skip
        write_trace(trace, requests, source="test", command="test")
        words = [str(trace), "--policy", "fixed", "--cost-model", str(tmp_path / "fitted.json")]
        words += ["--out", str(tmp_path / f"out-{name}"), "--jobs", "1", "--json", "--check"]
        status = run.main([*words, *flags])
        out, error = capsys.readouterr()
        if status:
            return {"status": status, "error": error}
        row: dict[str, Any] = json.loads(out)["policies"][0]
        return row

    assert "has no memory block" in replayed("alone")["error"]
    right = replayed("right", "--server", str(server), max_new_tokens=128)
    assert right["output_tok_s"] == pytest.approx(offered, rel=0.05)
    blind = replayed("blind", "--server", str(server))
    assert blind["output_tok_s"] < 0.6 * offered
    assert blind["ttft_ms"]["p50"] > 10 * right["ttft_ms"]["p50"]
    config = json.loads((tmp_path / "out-right" / "config.json").read_text())
    assert config["engine"]["kv_pool_tokens"] == 2000


@pytest.mark.filterwarnings("ignore:cost model")
@pytest.mark.example
def test_capacity_and_tune_take_the_same_flag(tmp_path: Path) -> None:
    from simulator.tune.command import _parser as tune
    from simulator.tune.task import common_flags, load_task

    server = str(told(tmp_path))
    flags = tune().parse_args(["chat", "--server", server])
    assert common_flags(flags)["engine"] == engine_of(server)
    task = load_task(flags)
    assert task.config.engine == engine_of(server)
    assert f"--server {server}" in task.command, "what makes the same policy again"
    more = load_task(tune().parse_args(["chat", "--max-running-requests", "99"]))
    assert more.config.engine.max_running_requests == 99
    assert "--max-running-requests 99" in more.command
    asked = capacity._parser().parse_args(["chat", "--server", server, "-o", "report"])
    config = capacity._config(asked)
    assert config == RunConfig(trace="chat", engine=server_settings(server).engine)


@pytest.mark.filterwarnings("ignore:cost model", "always:.*take 20 ms")
@pytest.mark.law
def test_a_users_table_is_replayed_and_said_to_fall_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cases 11 and 27: the file that SGLang plans with, beside the command that starts it."""
    table = tmp_path / "sps.json"
    table.write_text(
        json.dumps(
            {
                "sample_batch_tokens": [8, 16, 24, 32, 96],
                "sample_steps_per_sec": [100.0, 50.0, 90.0, 80.0, 40.0],
                "max_batch_tokens": 96,
            }
        )
    )
    server = tmp_path / "engine.json"
    command = "sglang serve m --max-running-requests 8 --max-total-tokens 100k"
    assert from_server.main([command, "-o", str(server)]) == 0
    trace = tmp_path / "trace.jsonl"
    requests = [
        Request(request_id=str(n), arrival_s=0.1 * n, prompt_tokens=60, output_tokens=60)
        for n in range(60)
    ]
    write_trace(trace, requests, source="test", command="test")
    words = [str(trace), "--policy", "sglang", "--policy", "global", "--jobs", "1", "--check"]
    words += ["--cost-model", str(table), "--config", str(server)]
    capsys.readouterr()
    assert run.main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    sentence = f"{table}: 16 tokens take 20 ms and the 2 probes after it, 24 to 32 tokens, "
    assert said.err.count(sentence) == 1
    assert sum(note.startswith(sentence) for note in summary["warnings"]) == 1
    # Under SGLang's reading 24 tokens are cheaper than 16, under the prices they never are.
    of = "verify_tokens_per_request_step"
    verified = {row["policy"]: row[of] for row in summary["policies"]}
    assert verified["sglang"] > verified["global"]
