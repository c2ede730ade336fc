"""Write a drafter in another convention:

    dspark draft convert DRAFTER OUT --to generic

Owns the command. What is computed does not change: where a convention cannot say what the drafter
is, the conversion is refused. ``folder`` and ``bundle`` are DeepSeek-V4's: its drafter alone, or in
its target's checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.cli import Parser
from sglang_dspark.draft.exchange.inspect import depth_of, target_ends
from sglang_dspark.draft.model.checkpoint import (
    drafter_tensors,
    load_drafter,
    save_drafter,
)
from sglang_dspark.draft.model.conventions import DEEPSPEC, GENERIC, SPECULATORS, written
from sglang_dspark.draft.model.deepseek_v4.checkpoint import save_bundle
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter
from sglang_dspark.draft.model.eagle import Eagle
from sglang_dspark.draft.model.tensors import WEIGHTS, write_folder, write_weights
from sglang_dspark.files import write_sorted_json

DENSE = (DEEPSPEC, GENERIC, SPECULATORS)
FOLDER, BUNDLE = "folder", "bundle"


def convert(
    drafter: str | Path, out: str | Path, *, to: str, target: str | Path | None = None
) -> Path:
    """Write ``drafter`` to ``out`` as ``to``; returns the folder."""
    goal = Path(out)
    if goal.exists():
        raise ValueError(f"{goal}: exists already; give a new folder or remove this one")
    theirs = None if target is None else Path(target)
    layers = None if theirs is None else depth_of(theirs)
    lent = {} if theirs is None else target_ends(theirs)
    found = load_drafter(drafter, target_layers=layers, lent=lent)
    if isinstance(found, BundledDrafter):
        if to == FOLDER:
            save_drafter(found, goal)
        elif to == BUNDLE:
            if theirs is None:
                raise ValueError("--to bundle: give --target, whose checkpoint it goes into")
            save_bundle(found, theirs, goal)
        else:
            raise ValueError(
                f"{drafter}: is DeepSeek-V4's own kind, whose layers no {to} drafter has; use "
                f"--to {FOLDER} or {BUNDLE}"
            )
        return goal
    if to not in DENSE:
        raise ValueError(
            f"{drafter}: is a {found.config.architecture}; only DeepSeek-V4's drafter can be a "
            f"{to}; use --to {', '.join(DENSE)}"
        )
    if isinstance(found, Eagle) and to != DEEPSPEC:
        raise ValueError(f"{found.config.architecture} has no {to} convention; use {DEEPSPEC}")
    value = written(found.config, to)
    # Speculators' loaders take the target's ends; DeepSpec's want theirs in the file.
    tensors = drafter_tensors(found, include_shared=to != SPECULATORS)

    def fill(temporary: Path) -> None:
        write_sorted_json(temporary / "config.json", value)
        write_weights(temporary / WEIGHTS, tensors)

    write_folder(goal, fill)
    return goal


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        description="Write a drafter in another convention. What it computes stays the same; "
        "where a convention cannot say what it is, it is refused.",
        examples=[
            "run/step_1000 for-sglang --to generic",
            "COMMUNITY mine --to deepspec --target TARGET",
            "run/step_1000 DeepSeek-V4-mine --to bundle --target DeepSeek-V4",
        ],
        page="docs/drafters.md",
    )
    parser.add_argument("drafter", help="checkpoint folder, of any convention")
    parser.add_argument("out", help="folder to write; it must not exist")
    parser.add_argument("--to", required=True, choices=(*DENSE, FOLDER, BUNDLE), help="convention")
    parser.add_argument("--target", help="folder of its target, where it is needed")
    given = parser.parse_args(arguments)
    print(convert(given.drafter, given.out, to=given.to, target=given.target))
    return 0
