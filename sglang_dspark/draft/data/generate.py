"""Answers of the target to prompts: the on-policy text that drafters are trained on.

    python -m sglang_dspark.draft.generate prompts.jsonl --target TARGET --out samples.jsonl
    python -m sglang_dspark.draft.generate prompts.jsonl --target TARGET --out samples.jsonl \\
        --url http://127.0.0.1:30000 --model NAME

Owns the command; ``answers`` does the work. The same command continues what was interrupted. With
``--url`` only the target's tokenizer is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from sglang_dspark.cli import Parser
from sglang_dspark.draft.data.answers import generate_from_server, generate_local, load_tokenizer
from sglang_dspark.draft.data.fingerprint import file_sha256, model_fingerprint
from sglang_dspark.draft.data.prompts import read_prompts
from sglang_dspark.draft.data.samples import SampleLog
from sglang_dspark.draft.data.server import Server
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.target import Target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        description="Let the target answer prompts: the text that drafters are trained on. The "
        "same command continues what was interrupted.",
        examples=[
            "prompts.jsonl --target TARGET --out samples.jsonl",
            "prompts.jsonl --target TARGET --out samples.jsonl --url http://127.0.0.1:30000 "
            "--model NAME",
        ],
        page="docs/serving.md",
    )
    parser.add_argument("prompts", metavar="PROMPTS", help="JSONL: turns, text or tokens")
    parser.add_argument("--target", required=True, help="folder of the target, or its tokenizer")
    parser.add_argument("--out", required=True, help="JSONL of samples; continued when it exists")
    parser.add_argument("--url", help="OpenAI-compatible server to ask instead of our own sampler")
    parser.add_argument("--model", default="default", help="model name that the server serves")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling; 0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="of sampling; 1: off")
    parser.add_argument("--max-tokens", type=int, default=2048, help="per answer")
    parser.add_argument("--batch", type=int, default=64, help="prompts in flight at a time")
    parser.add_argument("--limit", type=int, help="answer only the first so many prompts")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of transformers' loading
    given = parser.parse_args(arguments)
    for name in ("max_tokens", "batch"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(given, name)}: give 1 or more")
    sampling = Sampling(temperature=given.temperature, top_p=given.top_p)
    prompts = read_prompts(given.prompts, limit=given.limit)
    tokenizer = load_tokenizer(given.target)
    settings: dict[str, Any] = {
        "prompts": file_sha256(given.prompts),
        "limit": given.limit,
        "temperature": given.temperature,
        "top_p": given.top_p,
        "max_tokens": given.max_tokens,
        "seed": given.seed,
    }
    if given.url:
        server = Server(
            url=given.url,
            model=given.model,
            temperature=given.temperature,
            top_p=given.top_p,
            max_tokens=given.max_tokens,
        )
        settings |= {"source": "server", "model": given.model}
        with SampleLog(given.out, settings=settings) as log:
            generate_from_server(
                prompts,
                server=server,
                tokenizer=tokenizer,
                log=log,
                concurrency=given.batch,
                seed=given.seed,
            )
            count = len(log.samples)
    else:
        settings |= {"source": "target", "target": model_fingerprint(given.target)}
        settings["batch"] = given.batch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        target = Target.from_pretrained(given.target, device=device)
        with SampleLog(given.out, settings=settings) as log:
            generate_local(
                prompts,
                target=target,
                tokenizer=tokenizer,
                log=log,
                sampling=sampling,
                max_tokens=given.max_tokens,
                batch=given.batch,
                seed=given.seed,
            )
            count = len(log.samples)
    print(f"{given.out}: {count} samples")
    return 0
