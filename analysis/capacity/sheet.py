"""What the capacity report's figures have in common: words around them, heading, provenance.

Owns the form of a figure, not its content (``figures``). Reads the record of ``report`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.page import Panel, footer_lines, sheet
from analysis.replays import Replay, Row, Settings, Summary
from analysis.series import Series, short_name


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A figure and the words around it."""

    key: str
    """Anchor of its section."""
    title: str
    figure: Figure
    caption: str
    """What to look at, in a sentence or two."""
    alternative: str
    """What it shows, for who does not see it."""


def closed_loop_replay(report: dict[str, Any]) -> Replay:
    """The closed-loop runs in the form that the panels of ``analysis.panels`` read."""
    loop = report["closed_loop"]
    rows = [
        Row(
            policy=label,
            concurrency=load,
            requests=row["requests"],
            output_tok_s=row["output_tok_s"],
            tok_s_user_p50=row["tok_s_user_p50"],
            verify_tokens_per_request_step=row["verify_tokens_per_request_step"],
        )
        for label in report["policies"]
        for load, row in zip(loop["concurrency"], loop["policies"][label], strict=True)
    ]
    model = report["cost_model"]
    return Replay(
        path=Path(report["trace"]["name"]),
        summary=Summary(
            trace=report["trace"]["name"],
            trace_sha256=report["trace"]["sha256"],
            cost_model=model["name"],
            cost_model_origin=model["origin"],
            acceptance=report["acceptance"],
            seed=report["seed"],
            slo=report["slo"]["name"],
            replicas=1,
            gpus=model["gpus"],
            interrupted=False,
            policies=rows,
        ),
        settings=Settings(rate=1.0, engine={}, provenance={"version": report["version"]}),
    )


def provenance(report: dict[str, Any], scene: str) -> list[str]:
    """The footer of a figure: ``scene`` says what was simulated for it."""
    trace, model, slo = report["trace"], report["cost_model"], report["slo"]
    return footer_lines(
        [
            f"Simulated from trace {trace['name']} (sha256 {trace['sha256'][:12]}, "
            f"{trace['requests']:,} requests)",
            scene,
            f"cost model {short_name(model['name'])} ({model['origin']})",
            f"acceptance {report['acceptance']}",
            f"SLO {slo['name']} (TTFT {slo['ttft_ms']:.4g} ms, TPOT {slo['tpot_ms']:.4g} ms)",
            f"seed {report['seed']}",
            f"sglang-dspark {report['version']}",
        ]
    )


def _heading(report: dict[str, Any], what: str) -> str:
    return f"{report['trace']['name']} on {short_name(report['cost_model']['name'])}: {what}"


def report_sheet(
    report: dict[str, Any],
    series: Sequence[Series],
    panels: Sequence[Panel],
    what: str,
    scene: str,
) -> Figure:
    """Panels in two columns; ``what`` ends the heading, ``scene`` says what was simulated."""
    return sheet(
        panels,
        series,
        heading=_heading(report, what),
        footer=provenance(report, scene),
        columns=2,
    )
