"""A command that starts SGLang, as what its server would tell of itself; nothing is run.

Owns the reading of the command line: the flags that a replay knows, with their values, and every
other word, so that none is dropped in silence. Knows no default and no simulation.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

EXAMPLE = "python -m sglang.launch_server --model-path MODEL ..."
_MULTIPLES = {
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_ENDS = ("|", "||", "&&", "&", ";", ">", ">>", "2>", "2>&1", "&>")
"""Words that end the command in a shell."""


def whole(text: str) -> int:
    """A whole number, without the multiples that most flags do not take."""
    if not re.fullmatch(r"-?\d+", text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def multiple(text: str) -> int:
    """SGLang's number of tokens: ``16384``, ``16k``, ``16Ki``."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?", text)
    value = float(found[1]) * _MULTIPLES.get(found[2] or "", 1) if found else 0.5
    if value != int(value):
        raise ValueError(f"{text!r} is no whole number")
    return int(value)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


_KINDS: dict[str, Callable[[str], Any]] = {
    "max_running_requests": whole,
    "chunked_prefill_size": whole,
    "max_prefill_tokens": multiple,
    "prefill_decode_interval": whole,
    "min_free_slots_delay": whole,
    "max_total_tokens": multiple,
    "page_size": whole,
    "tp_size": whole,
    "dp_size": whole,
    "pp_size": whole,
    "speculative_dspark_block_size": whole,
    "mem_fraction_static": _share,
    "schedule_policy": str,
    "speculative_algorithm": str,
    "model_path": str,
}
"""Flags with one value that is looked at; any other keeps its words."""
_SWITCHES = ("disable_radix_cache", "disable_overlap_schedule", "enable_mixed_chunk")
_SHORT = {
    "tp": "tp_size", "tensor_parallel_size": "tp_size", "dp": "dp_size", "pp": "pp_size",
    "data_parallel_size": "dp_size", "pipeline_parallel_size": "pp_size", "model": "model_path",
    "speculative_algo": "speculative_algorithm",
}  # fmt: skip
_NAMES = (*_KINDS, *_SWITCHES)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a command says."""

    told: dict[str, Any]
    """By SGLang's names: numbers and texts where they are looked at, else the words of the flag, or
    True for one without."""
    words: dict[str, str]
    """By the same names: the flag as it was written, with its value."""
    environment: dict[str, str]
    """Assignments before the command."""


def is_launch(text: str) -> bool:
    """Whether these words are meant to start SGLang."""
    return bool(re.search(r"sglang[./]launch_server(\.py)?(\s|$)|sglang\s+serve(\s|$)", text))


def read_launch(command: str) -> Launch:
    """The flags of ``python -m sglang.launch_server ...`` or ``sglang serve ...``.

    ``ValueError`` in one sentence for another command, or for a value that its flag cannot have. Of
    a flag given twice the last counts, and a name may be cut short, as in SGLang.
    """
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise ValueError(f"the command ends within quotes ({error}); close them") from None
    begin = _begin(words)
    assigned = [word for word in words[:begin] if re.match(r"[A-Za-z_]\w*=", word)]
    environment = dict(word.split("=", 1) for word in assigned)
    told: dict[str, Any] = {}
    shown: dict[str, str] = {}
    for flag, values in _flags(words[begin:]):
        name = _name(flag)
        shown[name] = " ".join([flag, *values])
        told[name] = _value(name, flag, values)
    return Launch(told=told, words=shown, environment=environment)


def _begin(words: Sequence[str]) -> int:
    """Where the flags begin."""
    for i, word in enumerate(words):
        if word.endswith(("sglang.launch_server", "sglang/launch_server.py")):
            return i + 1
        if word == "serve" and i and words[i - 1].endswith("sglang"):
            return i + 1
    raise ValueError(f"names no SGLang server; give one like '{EXAMPLE}'")


def _flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Every flag with the words after it; words before the first flag go under an empty one."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word in _ENDS:
            break
        if re.match(r"--?[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            found.append(("", [word]))
    return found


def _name(flag: str) -> str:
    name = flag.lstrip("-").replace("-", "_")
    if name in _SHORT or name in _NAMES:
        return _SHORT.get(name, name)
    begun = [known for known in _NAMES if len(name) > 4 and known.startswith(name)]
    return begun[0] if len(begun) == 1 else name


def _value(name: str, flag: str, values: Sequence[str]) -> Any:
    if name in _SWITCHES:
        if values:
            raise ValueError(f"{flag} takes no value, and has {' '.join(values)!r}; leave it out")
        return True
    kind = _KINDS.get(name)
    if kind is None:
        return " ".join(values) if values else True
    if len(values) != 1:
        raise ValueError(f"{flag} takes one value, and has {len(values)}; mend it")
    try:
        return kind(values[0])
    except ValueError as error:
        raise ValueError(f"{flag} {error}; mend it") from None
