"""Prices for an engine's own planner: a cost model as the file that it is started with.

    python -m sglang_dspark.price_export h200-qwen3-8b-analytic --to sglang-sps -o sps.json
    python -m sglang_dspark.price_export sps.json --to sglang-sps -o rising.json

Owns the command. What a cost model looks like to SGLang is ``core.costs.sglang_tables``'s, to
TensorRT-LLM ``core.costs.tensorrt_llm``'s.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.core.costs.tensorrt_llm import TensorRtLlmTable, to_tensorrt_llm
from sglang_dspark.files import atomic_write, refuse_onto_input, refuse_replacing

NAME = "sglang_dspark.price_export"
FORMATS = ("sglang-sps", "sglang-additive", "tensorrt-llm")
Table = SpsTable | SpsAdditiveTable | TensorRtLlmTable
_START = {
    "sglang-sps": "Start SGLang with --speculative-dspark-sps-table-path",
    "sglang-additive": "Start SGLang with --speculative-dspark-sps-table-path",
    "tensorrt-llm": "Give it to TensorRT-LLM as confidence_sps_table_path:",
}


def exported(model: CostModel, to: str, gamma: int | None) -> Table:
    """The model in the format ``to``, which never falls; ``ValueError`` for a length that the model
    is not of, or that its SPS table needs and nobody says."""
    own = model.draft.gamma if model.draft else None
    if gamma is not None and gamma != (own or gamma):
        raise ValueError(
            f"--gamma {gamma}: cost model {model.name!r} is for draft length {own}; leave it out"
        )
    if to == "tensorrt-llm":
        return to_tensorrt_llm(model)
    if to == "sglang-additive":
        return to_additive(model)
    length = gamma or own or (1 if model.table and model.graph_tiers else None)
    if length is None:
        raise ValueError(
            f"cost model {model.name!r} does not say its draft length, which makes requests of an "
            "SPS table's tokens; give --gamma"
        )
    return to_sps(model, length)


def _summary(table: Table) -> str:
    if isinstance(table, SpsTable):
        tokens, rates = table.sample_batch_tokens, table.sample_steps_per_sec
        return (
            f"{len(tokens)} probes, {tokens[0]} to {tokens[-1]} tokens, {rates[0]:.4g} to "
            f"{rates[-1]:.4g} steps per second"
        )
    if isinstance(table, TensorRtLlmTable):
        tokens, requests = table.token_counts, table.batch_sizes
        bias_ms = table.fixed_overhead_ms
    else:
        tokens, requests = table.m_probes, table.bs_probes
        bias_ms = 1e3 * table.bias_seconds
    return (
        f"{len(requests)} probes up to {requests[-1]} requests, {len(tokens)} up to {tokens[-1]} "
        f"tokens, from {bias_ms:.4g} ms a step"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(NAME, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser(
        description="Write a cost model as a table that SGLang's own DSPARK plans with, given as "
        "--speculative-dspark-sps-table-path, or TensorRT-LLM's. Of SGLang's own table this makes "
        "a copy whose times only rise.",
        examples=[
            "h200-qwen3-8b-analytic --to sglang-sps -o sps.json",
            "costs.json --to sglang-additive -o additive.json",
        ],
        page="docs/policies.md",
    )
    parser.add_argument(
        "model", metavar="MODEL",
        help="one that dspark list cost-models shows, or a .json file, be it SGLang's own table",
    )  # fmt: skip
    parser.add_argument(
        "--to", required=True, choices=FORMATS,
        help="steps per second by tokens, read by floor lookup; or a part for the requests and one "
        "for the tokens, read linearly, by SGLang or by TensorRT-LLM",
    )  # fmt: skip
    parser.add_argument(
        "--gamma", type=int, metavar="K", help="draft length (default: the cost model's own)"
    )
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--force", action="store_true", help="replace another file in --out")
    arguments = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the copy does not fall, which is what the note says
        model = load_cost_model(arguments.model)
    table = exported(model, arguments.to, arguments.gamma)
    refuse_onto_input(arguments.out, arguments.model)
    text = json.dumps(dataclasses.asdict(table), allow_nan=False) + "\n"
    refuse_replacing(arguments.out, text.encode(), force=arguments.force)
    with atomic_write(arguments.out) as file:
        file.write(text)
    block = model.table or model.additive
    if model.sglang_table is not None and block is not None:
        print(f"{model.name}: {block.note}")
    print(f"{arguments.out}: {_summary(table)}. {_START[arguments.to]} {arguments.out}")


if __name__ == "__main__":
    raise SystemExit(main())
