"""From a server's step log to what replays it: an acceptance profile and a cost model.

    python -m simulator.fit STEP_LOG [STEP_LOG ...] -o DIR [--requests TRACE.jsonl]
                            [--measured TRACE.measured.jsonl] [--server server.json]

Writes ``acceptance.parquet`` (for ``--acceptance``), ``cost_model.json`` (for ``--cost-model``)
and ``fit.json`` with fit errors, valid range and what the log could not tell, which is printed
too. With ``--requests``, the request log of the same time in the schema of ``traces``, rounds are
grouped by domain, and what was measured of the requests beside it prices prompts. What is read
is ``logged_steps``, the fits are ``acceptance``, ``prefill`` and ``cost``; owns the command, the
report and the price of exploring.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.schema import PricedDrafter, Provenance
from sglang_dspark.core.costs.tables import RAGGED, UNIFORM, decode_step_seconds
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.logs.acceptance_log import write_rounds
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.rounds import Rounds
from sglang_dspark.logs.step_log import read
from simulator.fit.acceptance import LEAST_ROUNDS, CensoredFit, fit_censored
from simulator.fit.cost import CostFit, fit_cost
from simulator.fit.logged_steps import Logged, logged
from simulator.fit.prefill import PrefillFit
from simulator.fit.served import Served, read_served
from simulator.study.server import FILE as SERVER_FILE
from simulator.study.server import ServerSettings, server_settings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ACCEPTANCE = "acceptance.parquet"
"""Name of the acceptance log in the folder of a fit."""
_MOST_EXTRAPOLATED = 0.1
"""Share of a position's rounds from beyond which its extrapolation is spoken of."""


_MOST_OVERLAPPING = 0.05
"""Share of steps that may seem to overlap, by the clock's noise and another server's steps."""


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What it would take to see the positions that the policy hides."""

    share: float
    """Of the steps, to be verified in full."""
    throughput_loss: float
    """Share of the output rate that this costs, by the fitted models on the logged steps."""


def exploration(log: Logged, fit: CensoredFit, model: CostModel) -> Exploration:
    """The share of steps that would have shown every position ``LEAST_ROUNDS`` times, and its cost.

    Every logged step is priced twice with the fitted models, as it was and verified in full; a
    share of them takes the longer time and commits the longer runs.
    """
    column = np.arange(1, fit.probability.shape[1] + 1)
    hidden = (log.rounds.accepted == log.rounds.verified)[:, None] & (
        column > log.rounds.verified[:, None]
    )
    kept = log.rounds.accepted[:, None] >= column
    survival = np.cumprod(np.where(hidden, fit.probability, kept), axis=1)
    reach = np.concatenate((np.ones((len(survival), 1)), survival[:, :-1]), axis=1).sum(axis=0)
    need = np.where(fit.identified, 0.0, (LEAST_ROUNDS - fit.shown) / np.maximum(reach, 1.0))
    share = float(np.clip(need.max(), 0.0, 1.0))
    most_tokens = int(log.times.requests.max()) * (len(column) + 1)
    tables = model.tables(most_tokens, int(log.times.requests.max()))
    as_was = in_full = 0.0
    for requests, drafted, tokens, context, uniform in zip(
        log.times.requests.tolist(),
        log.times.drafted.tolist(),
        log.times.tokens.tolist(),
        log.times.context_tokens.tolist(),
        log.times.uniform.tolist(),
        strict=True,
    ):
        full = requests + drafted * len(column)
        shape = UNIFORM if uniform else RAGGED
        as_was += decode_step_seconds(tables, tokens, requests, drafted, float(context), shape)
        in_full += decode_step_seconds(tables, full, requests, drafted, float(context), UNIFORM)
    committed = float(log.times.requests.sum() + log.rounds.accepted.sum())
    more = float((survival.sum(axis=1) - log.rounds.accepted).sum())
    mixed = (committed + share * more) / (as_was + share * (in_full - as_was))
    return Exploration(share=share, throughput_loss=max(0.0, 1.0 - mixed * as_was / committed))


def not_shown(fit: CensoredFit, explore: Exploration) -> list[str]:
    """Sentences on the positions that the log says too little of."""
    lost = []
    dark = np.flatnonzero(~fit.identified)
    if dark.size:
        lost.append(
            f"position {int(dark[0]) + 1} and {dark.size - 1} later ones were shown in fewer than "
            f"{LEAST_ROUNDS} rounds; their acceptance goes on as at the positions before. To "
            f"measure it, verify {explore.share:.1%} of the steps in full; by the fitted models "
            f"that costs {explore.throughput_loss:.1%} of the output rate"
        )
    for k in np.flatnonzero(fit.identified & (fit.extrapolated > _MOST_EXTRAPOLATED)):
        lost.append(
            f"{fit.extrapolated[k]:.0%} of the rounds that reach position {k + 1} have confidences "
            "that no round verified so far had; their acceptance is extrapolated"
        )
    return lost


def write_acceptance(path: Path, log: Logged, runs: Ints) -> None:
    """An acceptance log of whole blocks."""
    shown = log.rounds
    write_rounds(
        path,
        Rounds(
            request=shown.request,
            step=shown.step,
            domain=np.array([name or "all" for name in log.domains])[shown.domain],
            logits=shown.logits,
            accepted=runs,
            temperature=np.full(len(runs), np.nan),
            position=log.position,
            output_tokens=log.output_tokens[shown.request],
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """Everything that one log gave."""

    log: Logged
    acceptance: CensoredFit
    cost: CostFit
    explore: Exploration

    @property
    def not_identified(self) -> list[str]:
        """Sentences."""
        lost = [*self.cost.not_identified, *not_shown(self.acceptance, self.explore)]
        if self.log.overlapping > _MOST_OVERLAPPING:
            lost.append(
                f"{self.log.overlapping:.0%} of the steps took longer than the time since the step "
                "before: steps overlap on the host's clock, so that the time between them is a "
                "guess; on a CPU start the server with --disable-overlap-schedule"
            )
        return lost

    def report(self) -> dict[str, Any]:
        """``fit.json``."""
        fit, cost = self.acceptance, self.cost
        rounded = {
            name: [None if np.isnan(v) else round(float(v), 5) for v in getattr(fit, name)]
            for name in ("conditional", "standard_error", "plain", "extrapolated")
        }
        error = cost.model.fit_error
        return {
            "schema_version": 1,
            "acceptance": {
                "origin": "measured",
                "rounds": int(fit.probability.shape[0]),
                "requests": len(self.log.names),
                "left_out": self.log.left_out,
                "shown": fit.shown.tolist(),
                **rounded,
            },
            "cost_model": {
                "origin": "measured",
                "steps": cost.steps,
                "fit_error": error and dataclasses.asdict(error),
                "valid_range": dataclasses.asdict(cost.model.valid_range),
                "mean_factor": round(cost.mean_factor, 4),
                "uniform_over_ragged": cost.uniform_over_ragged
                and round(cost.uniform_over_ragged, 4),
                "prefill": cost.prefill and _prefill_report(cost.prefill),
            },
            "exploration": dataclasses.asdict(self.explore),
            "not_identified": self.not_identified,
        }

    def save(self, folder: Path, *, seed: int) -> None:
        """The three files; the cost model names the acceptance beside it as its own."""
        runs = self.acceptance.runs(self.log.rounds, seed=seed)
        write_acceptance(folder / ACCEPTANCE, self.log, runs)
        drafter = PricedDrafter(
            name="the logged server's", acceptance=ACCEPTANCE, note="from the same step log"
        )
        dataclasses.replace(self.cost.model, drafter=drafter).save(folder / "cost_model.json")
        write_json(folder / "fit.json", self.report())


def _prefill_report(fit: PrefillFit) -> dict[str, Any]:
    """The prices and the 95 % intervals that resampled gaps put them in."""
    prices = {"base_s": fit.base, "token_s": fit.token, "pair_s": fit.pair}
    return {
        "gaps": fit.gaps,
        "longest_tokens": fit.longest_tokens,
        **{name: [price.seconds, price.low, price.high] for name, price in prices.items()},
    }


def calibrate(
    records: Iterable[StepRecord],
    served: Mapping[str, Served],
    *,
    name: str,
    provenance: Provenance,
    seed: int = 0,
    resamples: int = 40,
    chunk_tokens: int | None = None,
    torn: Container[str] = (),
) -> Calibrated:
    """Both fits of a log; ``chunk_tokens`` and ``torn`` as ``logged_steps.logged`` takes them."""
    log = logged(records, served, chunk_tokens=chunk_tokens, torn=torn)
    fit = fit_censored(log.rounds, resamples=resamples, seed=seed)
    cost = fit_cost(log.times, gamma=log.rounds.gamma, name=name, provenance=provenance)
    explore = exploration(log, fit, cost.model)
    return Calibrated(log=log, acceptance=fit, cost=cost, explore=explore)


def _parser() -> Parser:
    parser = Parser(
        description="Fit what replays a server to its step log: an acceptance profile for "
        "--acceptance and a cost model for --cost-model.",
        examples=["steps -o fit", "steps -o fit --requests recorded.jsonl --name mine"],
        page="docs/calibrate.md",
    )
    parser.add_argument(
        "step_log", nargs="+", metavar="STEP_LOG",
        help="folder that the server's --speculative-dspark-step-log named",
    )  # fmt: skip
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--requests", metavar="TRACE",
        help="trace of the same requests, name or file: groups rounds by domain, and tells what "
        "was measured of them where the trace has its .measured.jsonl beside it",
    )  # fmt: skip
    parser.add_argument(
        "--measured", metavar="FILE",
        help="what was measured of --requests: cached tokens and first-token times, by which "
        "prompts are priced (default: the .measured.jsonl beside it)",
    )  # fmt: skip
    parser.add_argument(
        "--server", metavar="FILE",
        help="server.json that traces record wrote (default: the one in STEP_LOG)",
    )  # fmt: skip
    parser.add_argument("--name", default="measured", help="what results call the cost model")
    parser.add_argument("--hardware", default="unknown", help="written into the cost model")
    parser.add_argument("--model", default="unknown", help="written into the cost model")
    parser.add_argument("--dtype", default="unknown", help="written into the cost model")
    parser.add_argument("--tp", type=int, default=1, help="written into the cost model")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    if arguments.measured and not arguments.requests:
        raise ValueError("--measured tells of the requests of a trace; name it with --requests")
    folders = arguments.step_log
    known = read_served(arguments.requests, arguments.measured) if arguments.requests else None
    server = settings_beside(arguments.server, folders)
    found = calibrate(
        (record for folder in folders for record in read(folder)),
        known.requests if known else {},
        name=arguments.name,
        provenance=Provenance(
            origin="measured",
            source=f"step log {', '.join(Path(folder).name for folder in folders)}",
            hardware=arguments.hardware,
            model=arguments.model,
            dtype=arguments.dtype,
            tp=arguments.tp,
            engine="SGLang with sglang-dspark",
            date=date.today().isoformat(),
            command=f"python -m simulator.fit {' '.join(folders)} -o {arguments.out}",
        ),
        seed=arguments.seed,
        chunk_tokens=server.engine.chunked_prefill_size if server else None,
    )
    folder = make_folder(arguments.out)
    found.save(folder, seed=arguments.seed)
    print(summary(found))
    print(f"\nWrote {folder}/acceptance.parquet, cost_model.json, fit.json")
    return 0


def settings_beside(server: str | None, folders: Sequence[str]) -> ServerSettings | None:
    """Those of ``server.json``: the named one, or the one in a folder of the log, if any."""
    if server is not None:
        return server_settings(server)
    found = [folder for folder in folders if (Path(folder) / SERVER_FILE).is_file()]
    return server_settings(found[0]) if found else None


def prefill_line(fit: PrefillFit) -> str:
    """The prices of a prefill, each with its interval."""
    shown = (("step", fit.base, 1e3, "ms"), ("token", fit.token, 1e6, "us"),
             ("pair", fit.pair, 1e9, "ns"))  # fmt: skip
    prices = ", ".join(
        f"{scale * price.seconds:.4g} {unit} a {name} "
        f"[{scale * price.low:.4g}, {scale * price.high:.4g}]"
        for name, price, scale, unit in shown
    )
    return f"prefill from {fit.gaps} gaps: {prices} (95 %)"


def summary(found: Calibrated) -> str:
    """What a person reads: acceptance by position, the cost's errors, what is missing."""
    fit = found.acceptance
    lines = [
        f"{fit.probability.shape[0]} rounds of {len(found.log.names)} requests",
        "position  acceptance  +-       uncorrected  rounds shown",
    ]
    for k in range(len(fit.conditional)):
        plain = "-" if np.isnan(fit.plain[k]) else f"{fit.plain[k]:.3f}"
        lines.append(
            f"{k + 1:8d}  {fit.conditional[k]:10.3f}  {fit.standard_error[k]:.4f}  {plain:>11}"
            f"  {fit.shown[k]:12d}"
        )
    error = found.cost.model.fit_error
    assert error is not None
    lines.append(
        f"step times of {found.cost.steps} steps: {error.median_rel:.1%} median, "
        f"{error.max_rel:.1%} largest error of cell means"
    )
    if found.cost.prefill is not None:
        lines.append(prefill_line(found.cost.prefill))
    lines += [f"NOT IDENTIFIED: {line}" for line in found.not_identified]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("simulator.fit", lambda: _command(_parser().parse_args(argv)))
