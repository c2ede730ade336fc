"""The plugin inside the real SGLang: when it acts, what it refuses, and that it says so in a line.

One process runs all of ``plugin_scenes``; two more are commands as an operator types them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sglang_dspark.runtime import plugin, refusals
from tests.runtime import plugin_scenes
from tests.waiting import HUNG_S

ROOT = Path(__file__).parents[2]
needs_sglang = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="SGLang is not installed"
)
LIGHT = """
import sys
before = set(sys.modules)
import sglang_dspark.runtime.plugin
new = {name.partition(".")[0] for name in set(sys.modules) - before} - {"sglang_dspark"}
print(*sorted(new - set(sys.stdlib_module_names)))
"""


def run(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, set up as for a server on CPU."""
    quiet = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    unset = {"SPECULATIVE_DSPARK_", "SGLANG_PLUGINS"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(tuple(unset))}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=folder,
        env={**kept, **quiet, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def scenes(folder: Path) -> dict[str, Any]:
    """What every scene found."""
    ended = run("-m", "tests.runtime.plugin_scenes", str(folder))
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = {}
    for line in lines:
        found |= json.loads(line)
    assert len(found) == len(plugin_scenes.SCENES), ended.stderr[-4000:]
    return found


@pytest.mark.example
def test_importing_the_plugin_loads_the_standard_library_alone() -> None:
    ended = run("-c", LIGHT)
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr


@pytest.mark.example
def test_a_plugin_that_cannot_be_set_up_stops_only_who_asks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    monkeypatch.delenv(plugin.ACTIVE, raising=False)
    monkeypatch.setattr(sys, "argv", ["serve", "--speculative-algorithm", "EAGLE"])
    plugin.register()
    assert "DSPARK is not available" in caplog.text
    for words in (["--speculative-algorithm", "DSPARK"], ["--speculative-algorithm=dspark"]):
        monkeypatch.setattr(sys, "argv", ["serve", *words])
        with pytest.raises(SystemExit, match=r"^sglang-dspark: "):
            plugin.register()


@needs_sglang
@pytest.mark.example
def test_help_shows_the_flags() -> None:
    ended = run("-m", "sglang.launch_server", "--help")
    assert ended.returncode == 0
    for name in ("policy", "cost-model", "step-log", "step-log-mb"):
        assert f"--speculative-dspark-{name} " in ended.stdout


@needs_sglang
@pytest.mark.example
def test_a_refused_command_ends_in_one_line(scenes: dict[str, Any], folder: Path) -> None:
    words = plugin_scenes.command(folder, "--speculative-dspark-policy=nonsense")
    ended = run("-m", "sglang.launch_server", *words)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("sglang-dspark: --speculative-dspark-policy: no policy 'nonsense'")


@needs_sglang
@pytest.mark.example
def test_a_server_that_does_not_ask_is_left_alone(scenes: dict[str, Any]) -> None:
    found = scenes["unasked"]
    assert set(found["ended"]) == {"ok"}
    assert not found["active"]
    assert not found["known"]
    assert {target.rpartition(".")[0] for target in found["hooked"]} == {"server_args.ServerArgs"}


@needs_sglang
@pytest.mark.example
def test_other_versions_refuse_dspark_and_say_which_to_install(scenes: dict[str, Any]) -> None:
    for text, ended in scenes["versions"].items():
        assert ended.startswith("SystemExit: sglang-dspark: SGLang"), text
        assert "install sglang==0.5." in ended


REFUSED = {
    "no drafter": "--speculative-draft-model-path",
    "missing drafter": "nowhere",
    "no config": "--speculative-draft-model-path",
    "unknown policy": "no policy 'globall'; did you mean 'global'?",
    "unreadable policy": "none.json: cannot read",
    "broken policy": "broken.json: unknown key 'budget'",
    "long policy": "exceeds the draft length 4",
    "no cost model": "give --speculative-dspark-cost-model",
    "unknown cost model": "no cost model 'h300'",
    "gamma of costs": "is for draft length 7, the drafter makes 4 tokens",
    "gamma of calibration": "calibration holds for draft length 2, not 4",
    "headless": "no confidence head; set --speculative-dspark-policy to none or fixed",
    "stranger": "hidden_size 96, this one has 64",
    "deeper": "num_hidden_layers 6, this one has 4",
    "eagle": "drafts token by token",
    "lora": "--enable-lora: DSPARK does not serve with LoRA",
    "width": "--speculative-num-draft-tokens 3",
    "step log": "cannot make the folder",
    "log size": "--speculative-dspark-step-log-mb 0 must be at least 1",
}


@needs_sglang
@pytest.mark.example
@pytest.mark.parametrize("name", REFUSED)
def test_a_start_that_cannot_go_well_is_refused_by_one_sentence(
    scenes: dict[str, Any], name: str
) -> None:
    ended = scenes["refused"][name]
    assert ended.startswith("SystemExit: sglang-dspark: ")
    assert REFUSED[name] in ended
    assert "\n" not in ended


@needs_sglang
@pytest.mark.example
def test_an_engine_gets_an_exception_that_it_can_catch(scenes: dict[str, Any]) -> None:
    assert scenes["refused"]["engine"].startswith("StartRefused: --speculative-algorithm DSPARK")


@needs_sglang
@pytest.mark.example
def test_flags_win_over_variables_and_reach_the_children(scenes: dict[str, Any]) -> None:
    found = scenes["accepted"]
    assert found["flags"] == {
        "SPECULATIVE_DSPARK_POLICY": "threshold:0.5",
        "SPECULATIVE_DSPARK_STEP_LOG_MB": "7",
        plugin.ACTIVE: "1",
    }
    assert found["child"] == ["DSPARK"]
    assert found["launcher"] == [str(1 + len(refusals.WEIGHT_UPDATES))]
    assert found["width"] == plugin_scenes.GAMMA + 1


@needs_sglang
@pytest.mark.example
def test_a_configuration_file_sets_them_too(scenes: dict[str, Any]) -> None:
    found = scenes["accepted"]["yaml"]
    assert found["SPECULATIVE_DSPARK_POLICY"] == "early_stop"
    assert found["SPECULATIVE_DSPARK_COST_MODEL"].endswith(plugin_scenes.COST)


@needs_sglang
@pytest.mark.example
def test_an_engine_and_a_headless_drafter_start(scenes: dict[str, Any]) -> None:
    assert scenes["accepted"]["engine"] == "ok"
    assert scenes["accepted"]["headless"] == "ok"


@needs_sglang
@pytest.mark.example
def test_the_lists_name_what_sglang_has(scenes: dict[str, Any]) -> None:
    assert scenes["defaults"] == {"server": [], "request": [], "manager": []}


@needs_sglang
@pytest.mark.example
def test_a_hook_without_a_place_stops_the_start(scenes: dict[str, Any]) -> None:
    assert "SGLang has no sglang.srt.server_args.NoSuch.thing" in scenes["rivals"]["missing"]
    assert "set SGLANG_PLUGINS=dspark" in scenes["rivals"]["held"]


@needs_sglang
@pytest.mark.example
def test_requests_that_cannot_be_served_are_answered_400(scenes: dict[str, Any]) -> None:
    found = scenes["http"]
    for name in ("custom_logit_processor", "return_hidden_states", "image_data", "batch"):
        status, text = found[name]
        assert status == 400, name
        assert "DSPARK does not serve" in text
    for name in ("lora_path", "input_embeds"):  # SGLang refuses these before it asks
        assert found[name][0] == 400
    assert found["plain request"] == "ok"
    assert found["other algorithm"] == "ok"
    assert found["pending"] == 0


@needs_sglang
@pytest.mark.example
@pytest.mark.parametrize("kind", ["disk", "tensor", "distributed", "ipc"])
def test_weight_updates_are_answered_400(scenes: dict[str, Any], kind: str) -> None:
    status, text = scenes["http"][f"update_weights_from_{kind}"]
    assert status == 400
    assert "weights are not updated in a running server" in text
