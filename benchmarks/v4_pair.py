"""A DeepSeek-V4 pair made from nothing: what its drafter gains, and that decoding stays exact.

    python -m benchmarks.v4_pair --work FOLDER

Every stage is a command of this package, so a run that was stopped goes on where it was. A target
of 1.2 M parameters (every kind of layer and of routing) learns the templated corpus; a drafter with
and one without Markov head are trained on its answers and measured on unseen prompts. Then greedy
answers are compared with the target's own, token for token, and sampled ones by chi-square: every
token's place in the target's own law for its context, and the last tokens beside plain sampling's.
Contexts go beyond three windows of 32 tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2, chi2_contingency

from benchmarks.provenance import ROOT, provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.evaluation.decode import VerifyAll, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling, probabilities
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.target import Target
from sglang_dspark.files import make_folder, write_json

RESULTS = ROOT / "benchmarks" / "results" / "v4_pair.json"
TRAIN_PROMPTS, HELD_OUT = 2000, 1200
PROMPT_TOKENS, NEW_TOKENS = 110, 60
REQUESTS, GREEDY_PROMPTS, BATCH = 900, 256, 64
PLACES = 20
TRAINING = {
    "target": "target",
    "data": "samples.jsonl",
    "kind": "dspark5",
    "epochs": 1.5,
    "batch": 16,
    "micro_batch": 16,
    "max_tokens": 192,
    "learning_rate": 5e-3,
    "betas": [0.9, 0.95],
}
DRAFTERS = {"dspark": 64, "no-markov": 0}
"""Name -> rank of the Markov head."""


def stage(work: Path, done: Path, module: str, *arguments: str) -> dict[str, float]:
    """Run a command unless ``done`` is there; its seconds, kept beside."""
    beside = work / f"{'-'.join(done.relative_to(work).parts)}.seconds.json"
    if not done.exists():
        began, cpu = time.perf_counter(), os.times()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"sglang_dspark.draft.{module}", *arguments]
        subprocess.run(command, cwd=work, env=environment, check=True, stderr=subprocess.DEVNULL)
        after = os.times()
        spent = after.children_user - cpu.children_user + after.children_system
        write_json(beside, {"wall_s": time.perf_counter() - began, "cpu_s": spent})
    found: dict[str, float] = json.loads(beside.read_text())
    return found


def make(work: Path) -> dict[str, Any]:
    """The pair and its measurements; what each stage took."""
    prompts = str(TRAIN_PROMPTS + HELD_OUT)
    words = ["templated", "--family", "deepseek_v4", "--steps", "140", "--out", "target"]
    words += ["--prompts-out", "prompts.jsonl", "--prompts", prompts]
    took = {"pretrain": stage(work, work / "target", "pretrain", *words)}
    words = ["prompts.jsonl", "--target", "target", "--out", "samples.jsonl", "--batch", str(BATCH)]
    words += ["--limit", str(TRAIN_PROMPTS), "--max-tokens", "96"]
    took["generate"] = stage(work, work / "samples.jsonl", "generate", *words)
    for name, rank in DRAFTERS.items():
        drafter = {"num_anchors": 16, "markov_rank": rank}
        write_json(work / f"{name}.json", {**TRAINING, "out": name, "drafter": drafter})
        final = work / name / "step_188"
        took[f"train {name}"] = stage(work, final, "train", "--config", f"{name}.json")
        words = ["prompts.jsonl", "--target", "target", "--drafter", str(final.relative_to(work))]
        words += ["-o", f"eval-{name}", "--skip", str(TRAIN_PROMPTS), "--new-tokens", "96"]
        done = work / f"eval-{name}" / "metrics.json"
        took[f"evaluate {name}"] = stage(work, done, "evaluate", *words, "--batch", str(BATCH))
    return took


def accepted(work: Path) -> dict[str, Any]:
    """Accepted length with and without Markov head, each with its standard error."""
    found: dict[str, Any] = {}
    for name in DRAFTERS:
        metrics = json.loads((work / f"eval-{name}" / "metrics.json").read_text())
        parts = metrics["acceptance"]
        found[name] = {domain: parts[domain]["length"] for domain in parts}
    one, other = (found[name]["all"] for name in ("dspark", "no-markov"))
    error = float(np.hypot(one["error"], other["error"]))
    found["gain"] = {"value": one["value"] - other["value"], "error": error}
    found["gain_in_errors"] = (one["value"] - other["value"]) / error
    return found


def long_prompts(work: Path) -> list[list[int]]:
    """Prompt and answer of the samples, one after another, in pieces of ``PROMPT_TOKENS``."""
    tokens: list[int] = []
    with open(work / "samples.jsonl", encoding="utf-8") as lines:
        for line in lines:
            sample = json.loads(line)
            tokens += sample["prompt"] + sample["response"]
    pieces = len(tokens) // PROMPT_TOKENS
    return [tokens[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS] for i in range(pieces)]


def speculated(
    target: Target, drafter: Any, prompts: list[list[int]], sampling: Sampling
) -> tuple[list[list[int]], float]:
    """(tokens, drafts accepted in a round), in batches."""
    tokens: list[list[int]] = []
    runs: list[int] = []
    for first in range(0, len(prompts), BATCH):
        decoded = speculate(
            target=target,
            drafter=drafter,
            prompts=prompts[first : first + BATCH],
            sampling=sampling,
            planner=VerifyAll(drafter.config.gamma),
            new_tokens=NEW_TOKENS,
            generator=torch.Generator().manual_seed(first),
        )
        tokens += decoded.tokens
        runs += decoded.log.accepted.tolist()
    return tokens, float(np.mean(runs))


def plain(target: Target, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """What the target alone answers."""
    tokens: list[list[int]] = []
    for first in range(0, len(prompts), BATCH):
        tokens += answer_tokens(
            target,
            prompts[first : first + BATCH],
            sampling=sampling,
            max_tokens=NEW_TOKENS,
            stops=set(),
            generator=torch.Generator().manual_seed(10_000 + first),
        )
    return tokens


def places_p(
    target: Target, prompts: list[list[int]], tokens: list[list[int]], sampling: Sampling
) -> float:
    """Chi-square of every token's randomised place in the target's law for its context."""
    counts = np.zeros(PLACES)
    random = torch.Generator().manual_seed(99)
    for first in range(0, len(prompts), BATCH):
        rows = slice(first, first + BATCH)
        own = torch.tensor(tokens[rows])
        whole = torch.cat([torch.tensor(prompts[rows]), own], dim=1)
        hidden, _ = target.prefill(tokens_BS=whole)
        logits = target.logits(hidden[:, PROMPT_TOKENS - 1 : -1])
        law = probabilities(logits=logits, sampling=sampling).double()
        at = law.gather(-1, own[..., None])
        numbers = torch.arange(law.shape[-1])
        before = (law * ((law > at) | ((law == at) & (numbers < own[..., None])))).sum(-1)
        place = before + at[..., 0] * torch.rand(own.shape, generator=random, dtype=torch.float64)
        bins = (place * PLACES).long().clamp(max=PLACES - 1)
        counts += np.bincount(bins.flatten().numpy(), minlength=PLACES)
    wanted = counts.sum() / PLACES
    return float(chi2.sf(((counts - wanted) ** 2 / wanted).sum(), PLACES - 1))


def last_tokens_p(one: list[list[int]], other: list[list[int]]) -> float:
    """Two samples of independent requests: their last token, rare ones taken together."""
    table = np.stack(
        [np.bincount([row[-1] for row in rows], minlength=1024) for rows in (one, other)]
    )
    common = table.sum(axis=0) >= 20
    rest = table[:, ~common].sum(axis=1, keepdims=True)
    table = np.concatenate([table[:, common], rest], axis=1)
    return float(chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)


def exactness(work: Path) -> dict[str, Any]:
    """Greedy tokens equal, sampled ones distributed as the target samples them."""
    target = Target.from_pretrained(work / "target")
    drafter = load_drafter(work / "dspark" / "step_188", target=target, share=True)
    target.capture(drafter.config.layers_captured)
    prompts = long_prompts(work)
    greedy = Sampling(temperature=0)
    some = prompts[:GREEDY_PROMPTS]
    found, run = speculated(target, drafter, some, greedy)
    wanted = plain(target, some, greedy)
    same = sum(a == b for a, b in zip(found, wanted, strict=True))
    result: dict[str, Any] = {
        "context_tokens": [PROMPT_TOKENS, PROMPT_TOKENS + NEW_TOKENS],
        "window": target.config.sliding_window,
        "greedy": {"prompts": len(some), "identical": same, "accepted_a_round": run},
    }
    for temperature in (0.7, 1.0):
        sampling = Sampling(temperature=temperature)
        asked = prompts[:REQUESTS]
        tokens, run = speculated(target, drafter, asked, sampling)
        result[f"T{temperature:g}"] = {
            "tokens": sum(map(len, tokens)),
            "accepted_a_round": run,
            "places_p": places_p(target, asked, tokens, sampling),
            "last_tokens_p": last_tokens_p(tokens, plain(target, asked, sampling)),
        }
    return result


def main() -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the pair, kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = make_folder(given.work).resolve()
    value = provenance("python -m benchmarks.v4_pair --work WORK")
    value |= {"seconds": make(work), "accepted_length": accepted(work)}
    value["exactness"] = exactness(work)
    write_json(make_folder(given.out.parent) / given.out.name, value)
    print(json.dumps({key: value[key] for key in ("accepted_length", "exactness")}, indent=1))


if __name__ == "__main__":
    sys.exit(run_command("v4_pair", main))
