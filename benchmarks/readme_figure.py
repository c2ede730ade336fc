r"""The README's figure: seven policies from light load to saturation on a published cost model.

    python -m benchmarks.readme_figure

Replays ``traces/mixed.jsonl`` in a closed loop against the step costs published for
DeepSeek-V4-Flash on four B300 (half a minute), then draws ``docs/figures/compare.png``. The same
as:

    python -m simulator.run traces/mixed.jsonl --cost-model b300x4-dsv4-flash-vllm \
        --concurrency 1,4,16,32,64,96,128,192,256 --max-running-requests 256 \
        --out results/readme
    python -m analysis.compare results/readme --concurrency 192 -o docs/figures/compare.png
"""

from __future__ import annotations

from pathlib import Path

from analysis import compare
from simulator import run

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "results" / "readme"
_FIGURE = _ROOT / "docs" / "figures" / "compare.png"
_TRACE = _ROOT / "traces" / "mixed.jsonl"
_COST_MODEL = "b300x4-dsv4-flash-vllm"
_LOADS = "1,4,16,32,64,96,128,192,256"
_PLACES = "256"
_LATENCIES_AT = "192"


def main() -> int:
    """Replay, then draw; the exit status of whichever fails."""
    scale = ["--concurrency", _LOADS, "--max-running-requests", _PLACES]
    replayed = run.main(
        [str(_TRACE), "--cost-model", _COST_MODEL, *scale, "--out", str(_RESULTS), "--force"]
    )
    if replayed:
        return replayed
    _FIGURE.parent.mkdir(parents=True, exist_ok=True)
    return compare.main([str(_RESULTS), "--concurrency", _LATENCIES_AT, "-o", str(_FIGURE)])


if __name__ == "__main__":
    raise SystemExit(main())
