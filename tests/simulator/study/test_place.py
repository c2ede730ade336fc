"""Two runs never share a folder, and none replaces another unasked."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sglang_dspark.files import write_json
from simulator.study.config import RunConfig
from simulator.study.place import claimed, settled

ROOT = Path(__file__).parents[3]
CONFIG = RunConfig(trace="a.jsonl")
OTHER = RunConfig(trace="a.jsonl", seed=1)


def finish(path: Path, config: RunConfig) -> None:
    write_json(path / "config.json", config)


@pytest.mark.law
def test_a_default_folder_is_the_runs_own_and_the_next_one_for_another(tmp_path: Path) -> None:
    default = tmp_path / "a"
    for config, name in ((CONFIG, "a"), (OTHER, "a-2"), (CONFIG, "a"), (OTHER, "a-2")):
        with claimed(None, default, config, force=False) as path:
            assert path == tmp_path / name
            finish(path, config)


@pytest.mark.example
def test_a_trace_by_another_name_is_the_same_run(tmp_path: Path) -> None:
    named, again, edited = (
        RunConfig(trace=trace, provenance={"trace_sha256": digest})
        for trace, digest in (("chat", "1"), ("traces/chat.jsonl", "1"), ("chat", "2"))
    )
    for config, name in ((named, "a"), (again, "a")):
        with claimed(None, tmp_path / "a", config, force=False) as path:
            assert path == tmp_path / name
            finish(path, config)
    with claimed(None, tmp_path / "a", edited, force=False) as path:
        assert path == tmp_path / "a-2"  # another trace under the same name


@pytest.mark.example
def test_a_named_folder_is_refused_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    with claimed(str(out), tmp_path / "a", CONFIG, force=False) as path:
        finish(path, CONFIG)
    with claimed(str(out), tmp_path / "a", CONFIG, force=False):
        pass
    with (
        pytest.raises(ValueError, match="another run, with another seed, is kept there"),
        claimed(str(out), tmp_path / "a", OTHER, force=False),
    ):
        pytest.fail("never inside")
    with claimed(str(out), tmp_path / "a", OTHER, force=True) as path:
        assert path == out


@pytest.mark.law
def test_a_folder_belongs_to_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from simulator.study.config import RunConfig
        from simulator.study.place import claimed
        config = RunConfig(trace="a.jsonl")
        with claimed({str(tmp_path / "a")!r}, Path("unused"), config, force=False):
            print("in", flush=True)
            time.sleep(600)
        """)
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with (
            pytest.raises(ValueError, match="another run is writing there"),
            claimed(str(tmp_path / "a"), tmp_path / "a", CONFIG, force=True),
        ):
            pytest.fail("never inside")
        with claimed(None, tmp_path / "a", CONFIG, force=False) as path:
            assert path == tmp_path / "a-2"
        with pytest.raises(ValueError, match="wait until it is done"), settled(tmp_path / "a"):
            pytest.fail("never inside")
        holder.kill()
    with claimed(str(tmp_path / "a"), tmp_path / "a", CONFIG, force=False):
        pass
    with settled(tmp_path / "a"), settled(tmp_path / "a"):
        pass


@pytest.mark.example
def test_the_block_s_own_error_passes_through(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        claimed(None, tmp_path / "a", CONFIG, force=False),
    ):
        raise KeyboardInterrupt
