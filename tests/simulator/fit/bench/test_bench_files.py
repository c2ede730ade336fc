"""Results of benchmarks as points: every format, and every file that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.fit.bench.asked import VLLM as VLLM_SERVER
from simulator.fit.bench.asked import engine_of_points
from simulator.fit.bench.bench_files import Told, read_points

SGLANG: dict[str, Any] = {
    "backend": "sglang", "dataset_name": "random", "request_rate": "inf", "max_concurrency": 8,
    "completed": 32, "total_input_tokens": 32000, "total_output_tokens": 6400, "duration": 20.0,
    "output_throughput": 320.0, "mean_tpot_ms": 21.0, "mean_ttft_ms": 180.0, "accept_length": None,
    "random_range_ratio": 0.5,
}  # fmt: skip
VLLM: dict[str, Any] = {
    "backend": "vllm", "request_rate": 4.0, "burstiness": 1.0, "max_concurrency": None,
    "completed": 100, "failed": 0, "total_input_tokens": 50000, "total_output_tokens": 12800,
    "output_throughput": 480.0, "mean_tpot_ms": 11.0, "mean_ttft_ms": 60.0,
    "spec_decode_acceptance_length": 2.9,
}  # fmt: skip
GUIDELLM: dict[str, Any] = {
    "benchmarks": [
        {
            "config": {"strategy": {"type_": "concurrent", "streams": 16}},
            "metrics": {
                "request_totals": {"successful": 64, "errored": 0},
                "prompt_token_count": {"successful": {"mean": 512.0}},
                "output_token_count": {"successful": {"mean": 128.0}},
                "output_tokens_per_second": {"successful": {"mean": 900.0}},
                "inter_token_latency_ms": {"successful": {"mean": 16.0}},
                "time_to_first_token_ms": {"successful": {"mean": 90.0}},
            },
        }
    ]
}


def written(tmp_path: Path, *values: Any, name: str = "bench.jsonl") -> str:
    path = tmp_path / name
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values))
    return str(path)


def test_sglang_lines_are_runs(tmp_path: Path) -> None:
    low, high = SGLANG | {"max_concurrency": 1, "output_throughput": 45.0}, SGLANG
    points = read_points(written(tmp_path, low, "", high), Told())
    assert [p.concurrency for p in points] == [1, 8]
    assert points[1].policy == "none"
    assert (points[1].prompt_tokens, points[1].output_tokens) == (1000, 200)
    assert points[1].spread == pytest.approx(1 / 3)  # from 0.5 to 1 of the longest
    assert (points[1].output_tok_s, points[1].tpot_ms, points[1].ttft_ms) == (320.0, 21.0, 180.0)


def test_random_prompts_are_said_where_drafts_were_accepted(tmp_path: Path) -> None:
    path = written(tmp_path, SGLANG | {"accept_length": 1.4})
    with pytest.warns(UserWarning, match="does not transfer"):
        (point,) = read_points(path, Told(policy="fixed:7"))
    assert point.accepted_length == 1.4


def test_vllm_open_loop_and_its_accepted_length(tmp_path: Path) -> None:
    (point,) = read_points(written(tmp_path, VLLM, name="v.json"), Told(policy="fixed:3"))
    assert (point.concurrency, point.rate, point.accepted_length) == (None, 4.0, 2.9)
    assert engine_of_points([point]) == VLLM_SERVER
    (other,) = read_points(written(tmp_path, SGLANG), Told())
    assert engine_of_points([other]).enable_mixed_chunk is False
    with pytest.raises(ValueError, match="benchmarks of sglang and vllm"):
        engine_of_points([point, other])


def test_a_file_of_single_requests_has_their_means(tmp_path: Path) -> None:
    details = {
        "max_concurrency": 2, "completed": 2, "total_input_tokens": 20, "total_output_tokens": 6,
        "duration": 0.06, "ttfts": [0.05, 0.07], "itls": [[0.01, 0.01], [0.02, 0.02]],
        "output_lens": [3, 3],
    }  # fmt: skip
    (point,) = read_points(written(tmp_path, details), Told())
    assert point.tpot_ms == pytest.approx(15.0)
    assert point.ttft_ms == pytest.approx(60.0)
    assert point.output_tok_s == pytest.approx(100.0)


def test_guidellm_reports(tmp_path: Path) -> None:
    (point,) = read_points(written(tmp_path, GUIDELLM), Told())
    assert (point.concurrency, point.output_tok_s, point.tpot_ms) == (16, 900.0, 16.0)
    assert (point.prompt_tokens, point.output_tokens, point.requests) == (512, 128, 64)


@pytest.mark.parametrize(("sign", "bom"), [(",", ""), (";", "\ufeff")])
def test_a_csv_in_any_order_of_columns(tmp_path: Path, sign: str, bom: str) -> None:
    lines = [["tpot_ms", "policy", "concurrency", "output_tok_s"], ["9.9", "none", "1", "101"],
             ["", "fixed:7", "64", "2950"]]  # fmt: skip
    text = bom + "\r\n".join(sign.join(line) for line in lines)
    told = Told(prompt_tokens=1000, output_tokens=200)
    points = read_points(written(tmp_path, text, name="sweep.csv"), told)
    assert [(p.policy, p.concurrency, p.tpot_ms) for p in points] == [
        ("none", 1, 9.9),
        ("fixed:7", 64, None),
    ]
    assert points[1].requests == 256


HEAD = "policy,concurrency,prompt_tokens,output_tokens,output_tok_s,tpot_ms"
WRONG = [
    ([SGLANG | {"max_concurrency": None}], "either a concurrency or a rate"),
    ([SGLANG | {"completed": 0}], "no request completed"),
    ([SGLANG | {"errors": ["timeout"] * 10}], "10 of 42 requests failed"),
    ([SGLANG | {"mean_tpot_ms": 0.021}], "milliseconds"),
    ([SGLANG | {"mean_tpot_ms": "fast"}], "is no number"),
    ([SGLANG | {"output_throughput": 1e9}], "outside"),
    ([SGLANG | {"total_output_tokens": 0}], "--output-tokens"),
    ([SGLANG | {"accept_length": 3.0, "dataset_name": "chat"}], "how much was verified"),
    ([{"hello": 1}], "no result of SGLang"),
    (["[1, 2]"], "is no JSON object"),
    ([SGLANG, "{"], "bench:2: is no JSON"),
    ([{"benchmarks": [{"requests": {}}]}], "has no 'metrics'"),
    ([""], "is empty"),
    ([HEAD], "no run below its header"),
    ([HEAD, "none,1,10,10,100,9", "none,x,10,10,100,9"], "bench:3: concurrency 'x'"),
    ([HEAD, "none,1,10,10,100,9,7"], "more cells"),
    ([HEAD, "none,1,10,10,,"], "neither output tokens/s nor a TPOT"),
    ([HEAD, "none,1,10,10,100,0.009"], "tpot_ms 0.009"),
    ([HEAD, "none,1,10,10,nan,"], "output_tok_s nan"),
    ([HEAD, "nothing,1,10,10,100,9"], "nothing"),
    ([HEAD, "none,4,10,10,5000,9"], "which leaves"),
    ([HEAD + ",ttft_ms", "none,4,10,100,3,9,50"], "which leaves"),
    ([HEAD.replace("policy", "polcy"), "none,1,10,10,100,9"], "did you mean 'policy'"),
    ([HEAD, ",1,10,10,100,9"], "POLICY=FILE"),
]


@pytest.mark.parametrize(("lines", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, lines: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_points(written(tmp_path, *lines, name="bench"), Told())


SHARED = Path(__file__).parents[5] / "shared" / "cases" / "formats"


@pytest.mark.skipif(not SHARED.exists(), reason="the public files are not beside the checkout")
def test_public_files_are_read_or_say_what_they_lack() -> None:
    with pytest.warns(UserWarning, match="does not transfer"):
        (point,) = read_points(str(SHARED / "sglang_bench.jsonl"), Told(policy="fixed:7"))
    assert (point.rate, point.accepted_length) == (8.0, 2.5)
    (point,) = read_points(str(SHARED / "vllm_bench.json"), Told())
    assert point.tpot_ms == pytest.approx(10.0)
    with pytest.raises(ValueError, match="has no 'metrics'"):
        read_points(str(SHARED / "guidellm_out.json"), Told())
