"""What has a name: cost models, policies, SLOs, acceptance profiles, traces and mixtures.

    dspark list
    dspark list traces --json

Owns the command and the layout. What a row says is told by whoever owns the kind, whose module is
imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
from collections.abc import Sequence
from typing import Any

from sglang_dspark.cli import Parser

KINDS = {
    "cost-models": ("what a step costs", "sglang_dspark.core.costs.library", "describe_shipped"),
    "policies": ("who decides what is verified", __name__, "describe_policies"),
    "slos": ("bounds on waiting and on pace", "simulator.slo", "describe_presets"),
    "acceptance": ("what is accepted", "simulator.acceptance.load", "describe_shipped"),
    "traces": ("requests to replay", "traces.store", "describe_shipped"),
    "mixtures": ("what traces are made of", "traces.mixture", "describe_shipped"),
}
"""By kind: one line on it, and the module and function that tell its rows."""


def rows(kind: str) -> list[dict[str, Any]]:
    """Every name of a kind with what there is to know of it; the first column is the name."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"nothing is called {kind!r}; {hint}kinds: {', '.join(KINDS)}")
    _, module, function = KINDS[kind]
    found: list[dict[str, Any]] = getattr(importlib.import_module(module), function)()
    return found


def describe_policies() -> list[dict[str, Any]]:
    """A row on each policy."""
    from sglang_dspark.core.policy import POLICIES

    return [{"name": name, "does": kind.summary} for name, kind in POLICIES.items()]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Aligned columns under their titles, numbers to the right."""
    titles = list(found[0])
    texts = [[title.replace("_", " ") for title in titles]]
    texts += [[_text(row[title]) for title in titles] for row in found]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [isinstance(found[0][title], int | float) for title in titles]
    return "\n".join(
        "  ".join(
            f"{text:>{width}}" if to_the_right else f"{text:<{width}}"
            for text, width, to_the_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in texts
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner:g}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Print the names that other commands take, with a line on each.",
        examples=["", "cost-models", "traces --json"],
        page="docs/rollout.md",
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON, a list of objects")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = _parser().parse_args(argv)
    if given.kind is None:
        found = [{"kind": kind, "holds": about} for kind, (about, *_) in KINDS.items()]
    else:
        found = rows(given.kind)
    print(json.dumps(found, indent=1, allow_nan=False) if given.json else table(found))
    return 0
