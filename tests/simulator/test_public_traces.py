"""The public traces convert and replay whole, where their files are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.engine.layout import COMPLETED, REJECTED
from simulator.fleet.fleet import simulate
from simulator.study.config import RunConfig, load_study
from traces.convert import main as convert

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"


@pytest.mark.filterwarnings("ignore:cost model")  # whose acceptance it is does not matter here
@pytest.mark.golden
@pytest.mark.skipif(not SHARED.is_dir(), reason="the public traces are not at hand")
@pytest.mark.parametrize(
    ("name", "rows", "flags"),
    [
        ("mooncake_conversation_trace.jsonl", 12_031, []),
        ("azure2023_conv.csv", 19_366, []),
        (
            "vidur_arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
            28_257,
            ["--rate", "3"],
        ),
        ("servegen_deepseek-r1_1h_6rps_sample.csv", 22_010, []),
    ],
)
def test_a_public_trace_replays_to_the_last_request(
    name: str, rows: int, flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    assert convert([str(SHARED / name), "-o", str(path), *flags]) == 0
    config = RunConfig(trace=str(path), policies=("global",), cost_model="b300x4-dsv4-flash-vllm")
    (run,) = load_study(config).runs
    requests = simulate(run.scenario, check=True).requests
    assert requests.size == rows
    assert np.isin(requests["status"], (COMPLETED, REJECTED)).all()
    served = requests["status"] == COMPLETED
    assert served.sum() > 0.99 * rows
    np.testing.assert_array_equal(requests["generated"][served], requests["output_limit"][served])
