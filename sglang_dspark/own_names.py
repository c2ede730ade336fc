"""Whether ``traces``, ``simulator`` and ``analysis`` are this project's packages.

The names are common: a distribution of that name overwrites ours, and a folder or file of that name
hides it. Looks where Python would look and reads what it finds, without running it; ours say
``__part_of__``. Knows no command.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from sglang_dspark.extras import DISTRIBUTION

NAMES = ("traces", "simulator", "analysis")
_MARK = f'__part_of__ = "{DISTRIBUTION}"'
_REINSTALL = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"


def check_names() -> None:
    """``ValueError`` naming the file when Python would take one of the three from elsewhere."""
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ValueError(f"this project's package {name!r} is missing; {_REINSTALL}")
        if not _is_ours(spec):
            raise ValueError(_sentence(name, spec))


def _is_ours(spec: ModuleSpec) -> bool:
    try:
        source = spec.loader.get_source(spec.name)  # type: ignore[union-attr]
    except (AttributeError, ImportError, ValueError):  # an extension, a namespace, not text
        return False
    return source is not None and _MARK in source


def _sentence(name: str, spec: ModuleSpec) -> str:
    folders = list(spec.submodule_search_locations or ())
    at = Path(spec.origin if spec.has_location and spec.origin else folders[0])
    place = Path(folders[0] if folders else at).absolute()
    other = _distribution(name, place)
    if other:
        return (
            f"{at} belongs to the distribution {other!r} and not to this project's package "
            f"{name!r}; pip uninstall {other}, then {_REINSTALL}"
        )
    if place == Path(__file__).absolute().parents[1] / name:
        return f"{at} is not this project's package {name!r} any more; {_REINSTALL}"
    return (
        f"{at} hides this project's package {name!r}; run from another folder, or rename it, or "
        "take its folder off PYTHONPATH"
    )


def _distribution(name: str, place: Path) -> str:
    """Which other distribution put a package there; empty when none did."""
    from importlib import metadata  # slow to load, and asked only when something is wrong

    for other in metadata.packages_distributions().get(name, ()):
        at = Path(str(metadata.distribution(other).locate_file(name))).absolute()
        if other != DISTRIBUTION and at == place:
            return other
    return ""


def command_begun() -> str:
    """What ``python -m`` was given when it is one of this project's modules, else nothing.

    Holds from the first import on: while Python looks for the module, ``sys.argv[0]`` is ``-m``.
    """
    words = getattr(sys, "argv", [])
    if words and words[0] == "-m":
        word = sys.orig_argv[len(sys.orig_argv) - len(words)]
        name = word.partition("m")[2] if word.startswith("-") else word
    else:
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        name = spec.name if spec is not None else ""
    return name if name.partition(".")[0] in (*NAMES, "sglang_dspark") else ""
