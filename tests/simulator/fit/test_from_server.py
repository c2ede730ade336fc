"""``dspark prices from-server``: what a server is, from itself, its answer, or its command."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from analysis.capacity import command as capacity
from simulator.engine.config import EngineConfig
from simulator.fit.from_server import look, main
from simulator.study.config import first_config, load_run_config
from simulator.study.server import engine_of, server_settings
from tests.simulator.fit.recorded_scenes import SERVER
from tests.traces.recorded_servers import FakeServer

COMMAND = (
    "SGLANG_RAGGED_VERIFY_MODE=compact python -m sglang.launch_server --model-path M --tp 2 "
    "--speculative-algorithm DSPARK --speculative-dspark-block-size 7 "
    "--speculative-dspark-sps-table-path sps.json --mem-fraction-static 0.85 "
    "--chunked-prefill-size 4096 --max-total-tokens 200k --api-key sesame --trust-remote-code "
    "--enable-hierarchical-cache"
)
INFO: dict[str, Any] = {
    "version": "0.5.21",
    "api_key": "sesame",
    "page_size": 16,
    "chunked_prefill_size": 2048,
    "max_prefill_tokens": 16384,
    "max_running_requests": 32,
    "speculative_algorithm": "DSPARK",
    "disable_overlap_schedule": True,
    "tp_size": 4,
    "schedule_conservativeness": 1.0,
    "internal_states": [
        {
            "memory_usage": {"token_capacity": 123_456},
            "effective_max_running_requests_per_dp": 24,
        }
    ],
}


def written(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def out_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main([*words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.example
def test_a_command_has_sglangs_defaults_and_says_where_each_setting_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engine.json"
    status, out, err = out_of(capsys, COMMAND, "-o", str(file))
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines() if line}
    assert lines["max_running_requests"] == ["48", "SGLang's under speculation"]
    assert lines["chunked_prefill_size"] == ["4096", "--chunked-prefill-size 4096"]
    assert lines["kv_pool_tokens"] == ["200000", "--max-total-tokens 200k"]
    assert lines["max_prefill_tokens"] == ["16384", "SGLang's default"]
    assert lines["disable_overlap_schedule"] == ["false", "SGLang's default"]
    notes = [line for line in out.splitlines() if line.startswith("NOTE: ")]
    for words in (
        "model_path M, tp_size 2, mem_fraction_static 0.85",
        "speculative_algorithm DSPARK, speculative_dspark_block_size 7",
        "speculative_dspark_sps_table_path sps.json: give it as --cost-model",
        "MODE is compact: what SGLang's own DSPARK decides is --current sglang",
        "the server has enable_hierarchical_cache True, which is not simulated",
    ):
        assert any(words in note for note in notes), words
    assert "not simulated: --api-key, --trust-remote-code\n" in out
    assert "sesame" not in out + file.read_text()


@pytest.mark.law
def test_the_file_is_taken_as_server_and_as_config_by_run_tune_and_capacity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: both ways give the engine that the command printed."""
    file = tmp_path / "engine.json"
    assert out_of(capsys, COMMAND, "-o", str(file))[0] == 0
    engine = look(COMMAND).settings.engine
    assert engine == EngineConfig(
        max_running_requests=48, chunked_prefill_size=4096, kv_pool_tokens=200_000
    )
    config = first_config(str(file), "chat")  # what run and tune begin from
    assert (config.trace, config.engine) == ("chat", engine)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert engine_of(str(file)) == engine
        asked = capacity._parser().parse_args(["chat", "--server", str(file), "-o", "report"])
        assert capacity._config(asked).engine == engine
    assert "enable_hierarchical_cache" in str(said[-1].message)
    assert server_settings(file).speculative


@pytest.mark.example
def test_a_config_without_a_trace_needs_one_beside_it(tmp_path: Path) -> None:
    file = written(tmp_path / "engine.json", {"engine": {"page_size": 4}})
    assert load_run_config(file, "chat").engine.page_size == 4
    with pytest.raises(ValueError, match=r"engine\.json: names no trace; give one beside it"):
        load_run_config(file)
    named = written(tmp_path / "named.json", {"trace": "mixed"})
    assert load_run_config(named).trace == "mixed"
    assert load_run_config(named, "chat").trace == "chat"


@pytest.mark.example
def test_without_speculation_what_sglang_derives_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = out_of(capsys, "sglang serve m")
    for words in (
        "256               SGLang derives it from memory; ask the running server",
        "the cost model's  SGLang derives it from memory; ask the running server",
        "SGLang's for a GPU of 60 to 160 GB",
        "not simulated: m\n",
    ):
        assert words in out


@pytest.mark.example
def test_chunks_that_are_off_are_shown_so(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = out_of(capsys, "sglang serve m --chunked-prefill-size -1")
    assert "chunked_prefill_size      off" in out


@pytest.mark.example
@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ("", "static: SGLang's own DSPARK verifies everything, which is --current fixed"),
        ("SGLANG_RAGGED_VERIFY_MODE=compact ", "decides is --current sglang:flat"),
    ],
)
def test_the_mode_says_what_runs_today(
    words: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = out_of(capsys, f"{words}sglang serve m --speculative-algorithm DSPARK")
    assert policy in out


@pytest.mark.law
def test_an_answer_and_a_recording_give_the_same_engine(tmp_path: Path) -> None:
    """Law: what one ``/server_info`` holds and what the recorder made of it are one server."""
    told = written(tmp_path / "info.json", INFO)
    states = INFO["internal_states"]
    recorded = {key: value for key, value in INFO.items() if key != "internal_states"} | {
        "memory_usage": [states[0]["memory_usage"]],
        "running_requests_limit": [24],
    }
    found = look(told)
    assert found.settings.engine == server_settings(written(tmp_path / "r.json", recorded)).engine
    assert found.settings.engine == EngineConfig(
        max_running_requests=24,
        chunked_prefill_size=2048,
        disable_overlap_schedule=bool(INFO.get("disable_overlap_schedule")),
        page_size=16,
        kv_pool_tokens=123_456,
    )
    assert (
        look(written(tmp_path / "server.json", SERVER)).settings.engine.max_running_requests == 16
    )


@pytest.mark.example
def test_a_running_server_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "engine.json"
    with FakeServer() as server:
        server.answer = json.dumps(INFO).encode()
        status, out, _ = out_of(capsys, server.url, "-o", str(file))
    assert status == 0
    assert "max_running_requests      24                told\n" in out
    assert "sesame" not in out + file.read_text()
    assert json.loads(file.read_text())["provenance"]["settings_from"].endswith("/server_info")


@pytest.mark.example
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("foo", "'foo' is neither a URL, nor a .json file, nor a command in quotes"),
        ("absent.json", "absent.json: cannot read"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9/server_info: no answer"),
        ("sglang serve m --page-size 0", "the command: page_size 0 must be at least 1"),
        ("sglang serve m --page-size x", "--page-size 'x' is no whole number"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    source: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = out_of(capsys, source, "-o", str(tmp_path / "engine.json"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"simulator.fit.from_server: {sentence}" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.example
@pytest.mark.parametrize("answer", [b"hang up", b'"text"', b"{}", b"\xff\xfe"])
def test_a_server_that_is_none_is_one_sentence(
    answer: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer() as server:
        server.answer = answer
        status, _, err = out_of(capsys, server.url, "-o", str(tmp_path / "engine.json"))
    assert (status, err.count("\n")) == (2, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.example
def test_neither_its_input_nor_another_file_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = written(tmp_path / "info.json", INFO)
    assert "is the input, and would be lost" in out_of(capsys, told, "-o", told)[2]
    other = written(tmp_path / "other.json", {})
    assert "exists and holds something else" in out_of(capsys, told, "-o", other)[2]
    assert out_of(capsys, told, "-o", other, "--force")[0] == 0
    assert out_of(capsys, told, "-o", other)[0] == 0
