"""A command that starts SGLang is read as SGLang reads it, and no word of it is lost."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.study.launch import is_launch, read_launch

START = "python -m sglang.launch_server"


@pytest.mark.example
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--page-size 16", {"page_size": 16}),
        ("--page-size=16", {"page_size": 16}),
        ("--page-size 16 --page-size 32", {"page_size": 32}),
        ("--chunked-prefill-size -1", {"chunked_prefill_size": -1}),
        ("--max-prefill-tokens 16k", {"max_prefill_tokens": 16_000}),
        ("--max-prefill-tokens 16Ki", {"max_prefill_tokens": 16_384}),
        ("--max-total-tokens 1.5M", {"max_total_tokens": 1_500_000}),
        ("--tp 4 --dp 2", {"tp_size": 4, "dp_size": 2}),
        ("--tensor-parallel-size 4", {"tp_size": 4}),
        ("--speculative-algo DSPARK", {"speculative_algorithm": "DSPARK"}),
        ("--max-running 64", {"max_running_requests": 64}),
        ("--disable-radix-cache --tp 1", {"disable_radix_cache": True, "tp_size": 1}),
        ("--cuda-graph-bs 1 2 4", {"cuda_graph_bs": "1 2 4"}),
        ("--trust-remote-code", {"trust_remote_code": True}),
        ("--tp 2 > server.log 2>&1 &", {"tp_size": 2}),
        ("\\\n  --tp 2 \\\n  --dp 1", {"tp_size": 2, "dp_size": 1}),
    ],
)
def test_flags_are_read_as_sglang_reads_them(flags: str, told: dict[str, object]) -> None:
    assert read_launch(f"{START} {flags}").told == told


@pytest.mark.example
@pytest.mark.parametrize(
    "command",
    [
        "python3 -m sglang.launch_server --tp 2",
        "A=1 B=2 /opt/bin/python sglang/launch_server.py --tp 2",
        "nohup sglang serve --tp 2",
        "docker run --gpus all -p 30000:30000 image python3 -m sglang.launch_server --tp 2",
    ],
)
def test_every_way_to_start_it(command: str) -> None:
    assert is_launch(command)
    assert read_launch(command).told == {"tp_size": 2}


@pytest.mark.example
def test_assignments_and_bare_words_are_kept() -> None:
    launch = read_launch("SGLANG_RAGGED_VERIFY_MODE=compact sglang serve model --tp 2")
    assert launch.environment == {"SGLANG_RAGGED_VERIFY_MODE": "compact"}
    assert launch.words == {"": " model", "tp_size": "--tp 2"}


@pytest.mark.example
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("python -m vllm.serve --tp 2", "names no SGLang server; give one like 'python -m sglang"),
        (f"{START} --page-size big", "--page-size 'big' is no whole number; mend it"),
        (f"{START} --page-size 4k", "--page-size '4k' is no whole number; mend it"),
        (f"{START} --max-total-tokens 1.5Q", "--max-total-tokens '1.5Q' is no whole number"),
        (f"{START} --page-size", "--page-size takes one value, and has 0; mend it"),
        (f"{START} --page-size 1 2", "--page-size takes one value, and has 2; mend it"),
        (f"{START} --mem-fraction-static high", "--mem-fraction-static 'high' is no number"),
        (f"{START} --disable-radix-cache yes", "--disable-radix-cache takes no value, and has"),
        (f"{START} 'x", "the command ends within quotes"),
    ],
)
def test_a_wrong_command_is_one_sentence(command: str, sentence: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        read_launch(command)
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)


@pytest.mark.law
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{6,9}-[a-z]{3,9}", fullmatch=True),
        st.lists(st.from_regex(r"[a-z0-9./: ]{1,8}", fullmatch=True), max_size=3),
        max_size=8,
    )
)
def test_every_flag_and_every_value_is_there(flags: dict[str, list[str]]) -> None:
    """Law: whatever a flag is called, its words are in what is told and in what is shown."""
    words = [word for name, values in flags.items() for word in (f"--{name}", *values)]
    launch = read_launch(f"{START} {shlex.join(words)}")
    assert launch.words == {
        name.replace("-", "_"): " ".join([f"--{name}", *values]) for name, values in flags.items()
    }
    assert launch.told == {
        name.replace("-", "_"): " ".join(values) if values else True
        for name, values in flags.items()
    }
