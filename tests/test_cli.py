"""How commands end: the exit status, and what stands on which stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_dspark.cli import Parser, called_as, run_command
from tests.waiting import HUNG_S

PLAIN = "import sys\nfrom sglang_dspark.cli import run_command\n"


@pytest.fixture(autouse=True)
def _warnings_as_found() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


def run_script(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """``body`` in a process of its own, with the packages importable."""
    root = str(Path(__file__).parent.parent)
    return subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", PLAIN + body],
        **{"text": True, "stderr": subprocess.PIPE, "timeout": HUNG_S, **options},
        env={**os.environ, "PYTHONPATH": root},
    )


@pytest.mark.example
@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_that_ends_well_returns_its_own_status(
    returned: int | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("replay", lambda: returned) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.example
def test_wrong_input_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        raise ValueError("trace.jsonl:3: arrival_s -1 must be at least 0; mend it")

    assert run_command("replay", main) == 2
    said = "replay: trace.jsonl:3: arrival_s -1 must be at least 0; mend it\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.example
def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert run_command("replay", main) == 130
    assert capsys.readouterr() == ("", "replay: interrupted\n")


@pytest.mark.example
@pytest.mark.parametrize(
    ("main", "printed"),
    [("os.kill(os.getpid(), {0}); time.sleep(60)", "replay: interrupted\n"),
     ("exec('import os; os.kill(os.getpid(), {0}); time.sleep(60)')", "replay: interrupted\n"),
     ("partial({0})", "")],
    ids=["unhandled", "unhandled, in a string", "handled, with a partial result"],
)  # fmt: skip
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_end_a_command_alike_and_are_told_apart_by_the_status(
    number: signal.Signals, main: str, printed: str
) -> None:
    body = f"""
import os, time
def partial(number):
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    except KeyboardInterrupt:
        return 130
def main():
    {"return " if "partial" in main else ""}{main.format(int(number))}
sys.exit(run_command("replay", main))
"""
    ended = run_script(body, stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", printed)


@pytest.mark.example
def test_a_command_leaves_the_signals_as_it_found_them() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_command("replay", lambda: 0) == 0
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.example
@pytest.mark.parametrize(
    "defect",
    [
        KeyError("x"),
        PermissionError(13, "denied"),
        TypeError(),
        ModuleNotFoundError("No module named 'sglang_dspark.gone'", name="sglang_dspark.gone"),
        ModuleNotFoundError("No module named 'numpy.gone'", name="numpy.gone"),
    ],
)
def test_a_defect_keeps_its_traceback(defect: Exception) -> None:
    def main() -> None:
        raise defect

    with pytest.raises(type(defect)):
        run_command("replay", main)


@pytest.mark.example
def test_warnings_are_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        warnings.simplefilter("always")
        warnings.warn("the last probe is at 512 tokens", stacklevel=1)

    assert run_command("replay", main) == 0
    said = "replay: warning: the last probe is at 512 tokens\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.example
def test_a_wrong_flag_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="replay")
    parser.add_argument("--seed", type=int)

    def main() -> None:
        parser.parse_args(["--seed", "x"])

    assert run_command("replay", main) == 2
    said = "replay: argument --seed: invalid int value: 'x'; see --help\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.example
def test_the_outermost_name_is_what_a_command_goes_by(capsys: pytest.CaptureFixture[str]) -> None:
    def inner() -> None:
        assert Parser().prog == "dspark run"
        raise ValueError(f"{called_as('simulator.run')} was asked")

    assert run_command("dspark run", lambda: run_command("simulator.run", inner)) == 2
    assert capsys.readouterr().err == "dspark run: dspark run was asked\n"
    assert called_as("simulator.run") == "simulator.run"


@pytest.mark.example
@pytest.mark.parametrize("lines", [1, 100_000], ids=["little, buffered", "much"])
def test_a_reader_that_goes_away_ends_the_command_quietly(lines: int) -> None:
    """As in ``python -m simulator.run ... | head -1``."""
    body = f"sys.exit(run_command('replay', lambda: print('row\\n' * {lines})))"
    reader, writer = os.pipe()
    os.close(reader)
    ended = run_script(body, stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.example
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000], ids=["little, buffered", "much"])
def test_results_that_find_no_space_are_one_line_and_status_2(lines: int) -> None:
    body = f"sys.exit(run_command('replay', lambda: print('row\\n' * {lines})))"
    with open("/dev/full", "w") as full:
        ended = run_script(body, stdout=full)
    said = "replay: stdout: No space left on device; free some and run again\n"
    assert (ended.returncode, ended.stderr) == (2, said)
