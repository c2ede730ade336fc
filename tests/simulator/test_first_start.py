"""The first start: what is shown while the engine is compiled, and that it can be ended at once."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from simulator.study.first_start import shown_on
from tests.waiting import HUNG_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "simulator.run": ["--out", "{out}", "--jobs", "2"],
    "simulator.tune": ["--slo", "interactive", "--out", "{out}", "--jobs", "2"],
    "analysis.capacity": ["--slo", "interactive", "-o", "{out}", "--jobs", "2"],
}


class FirstStart:
    """A command in a session of its own, with an empty cache."""

    def __init__(self, command: str, folder: Path, cache: Path) -> None:
        self.out = folder / "out"
        self.spare = folder / "tmp"
        self.spare.mkdir()
        self._errors = folder / "stderr"
        flags = [flag.format(out=self.out) for flag in COMMANDS[command]]
        with open(self._errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", command, "traces/chat.jsonl", *flags],
                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                env={**os.environ, "NUMBA_CACHE_DIR": str(cache), "TMPDIR": str(self.spare)},
            )  # fmt: skip

    def lines(self) -> list[str]:
        """What stands on stderr; the bar that overwrites itself counts as no line."""
        return [
            line.split("\r")[-1] for line in self._errors.read_bytes().decode().split("\n")[:-1]
        ]

    def wait_until_it_compiles(self) -> None:
        wait_until(lambda: "compiling the engine, once: 0 s of" in self._errors.read_text(),
                   self.process)  # fmt: skip

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """(status, stdout) after the signal to the command alone, as by ``kill``."""
        os.kill(self.process.pid, number)
        printed, _ = self.process.communicate(timeout=HUNG_S)
        return self.process.returncode, printed

    def is_gone(self) -> bool:
        """Whether no process of the session is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False


@pytest.mark.law
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_while_the_engine_is_compiled_ends_the_command_at_once_with_one_line(
    command: str, number: signal.Signals, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    start = FirstStart(command, tmp_path, cache)
    start.wait_until_it_compiles()
    assert start.end(number) == (128 + number, "")
    assert start.lines() == [f"{command}: interrupted"]
    assert list(start.out.iterdir()) == []
    assert list(start.spare.iterdir()) == []
    wait_until(start.is_gone)
    assert not list(cache.rglob("*advance*.nbc")), "it ended when all was compiled"


@pytest.mark.example
def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    cache = tmp_path / "a-file" / "cache"
    start = FirstStart("simulator.tune", tmp_path, cache)
    start.wait_until_it_compiles()
    assert len(list(start.spare.iterdir())) == 1, "the code is handed over in a temporary folder"
    assert start.end(signal.SIGINT) == (130, "")
    first, last = start.lines()
    said = f"simulator.tune: warning: {cache}: compiled code cannot be kept (Not a directory)"
    assert first.startswith(said)
    assert last == "simulator.tune: interrupted"
    assert list(start.spare.iterdir()) == []


@pytest.mark.example
def test_the_wait_is_shown_in_whole_seconds_of_those_expected() -> None:
    bar = tqdm(total=1, disable=False, file=io.StringIO(), mininterval=0)
    shown_on(bar)(12.3)
    assert bar.desc.startswith("compiling the engine, once: 12 s of about ")
