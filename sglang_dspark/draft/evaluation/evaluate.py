"""Measure a drafter on prompts:

    dspark draft evaluate --target TARGET --drafter DRAFTER prompts.jsonl -o out

Owns the command and its files: ``rounds.parquet`` (the log that ``draft.calibrate`` fits and the
simulator replays), ``metrics.json``, ``speculation_profile.json`` for other tools, and figures
after the paper's 2, 5 and 6. What looks like a defect is a warning; a failed or empty
``--lossless`` check is status 1. Killed, the same command goes on where it was. Decoding is in
``recording``, definitions are in ``reliability`` and ``silent``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sglang_dspark.cli import Parser
from sglang_dspark.draft.data.answers import load_tokenizer, prompt_tokens
from sglang_dspark.draft.data.fingerprint import file_sha256, model_fingerprint
from sglang_dspark.draft.data.prompts import Prompt, read_prompts
from sglang_dspark.draft.data.samples import refuse_other_settings
from sglang_dspark.draft.evaluation.decode import PARTS
from sglang_dspark.draft.evaluation.lossless import PASSED, check_lossless
from sglang_dspark.draft.evaluation.recording import Recording, Settings, record
from sglang_dspark.draft.evaluation.reliability import (
    Acceptance,
    Estimate,
    Reliability,
    acceptance,
    reliability,
    survival_of,
    threshold_sweep,
)
from sglang_dspark.draft.evaluation.report_figures import (
    acceptance_figure,
    reliability_figure,
    save_figure,
    threshold_figure,
)
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.evaluation.silent import (
    ByContext,
    by_context,
    random_prompts,
    warnings_of,
)
from sglang_dspark.draft.evaluation.speculation_profile import compared, profile_of
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.target import Target
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.logs.acceptance_log import write_rounds
from sglang_dspark.logs.rounds import Rounds
from sglang_dspark.logs.speculation_profile import FILE as PROFILE
from sglang_dspark.logs.speculation_profile import read_profile

THRESHOLDS = np.arange(10) / 10
EVERYTHING = "all"
"""The name of all domains together."""


def by_domain(rounds: Rounds) -> dict[str, Rounds]:
    """Every domain's rounds; all together too where there are several."""
    domains = rounds.domains()
    parts = {domain: rounds.where(rounds.domain == domain) for domain in domains}
    return parts | ({EVERYTHING: rounds} if len(domains) > 1 else {})


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists, dataclasses as objects, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def metrics(recording: Recording, *, about: dict[str, Any]) -> dict[str, Any]:
    """Everything that ``metrics.json`` holds."""
    parts = by_domain(recording.rounds)
    total_s = sum(recording.seconds.values())
    per_round = {
        part: 1e3 * recording.seconds[part] / max(recording.batch_rounds, 1) for part in PARTS[1:]
    }
    value = {
        "schema_version": 1,
        **about,
        "gamma": recording.rounds.gamma,
        "rounds": len(recording.rounds),
        "tokens": recording.tokens,
        "acceptance": {domain: acceptance(part) for domain, part in parts.items()},
        "confidence": {
            domain: reliability(survival_of(part.logits), part.survived)
            for domain, part in parts.items()
        },
        "threshold_sweep": {d: threshold_sweep(part, THRESHOLDS) for d, part in parts.items()},
        "by_context": by_context(recording.rounds),
        "warnings": {domain: warnings_of(part) for domain, part in parts.items()},
        "seconds": {**recording.seconds, "total": total_s},
        "batch_round_ms": per_round,
    }
    plain: dict[str, Any] = _plain(value)
    return plain


def _estimates(estimate: Estimate) -> str:
    pairs = zip(np.atleast_1d(estimate.value), np.atleast_1d(estimate.error), strict=True)
    return " ".join(f"{value:.3f}+-{error:.3f}" for value, error in pairs)


def _percent(values: Any) -> str:
    return " ".join(f"{100 * value:6.2f}" for value in values)


def domain_report(domain: str, found: Acceptance, trust: Reliability) -> str:
    """The table of one domain; +- is one standard error over requests."""
    floor = "  (at its noise floor)" if trust.at_floor else ""
    return "\n".join(
        [
            f"{domain}: {found.rounds} rounds of {found.requests} requests",
            f"  accepted length          {_estimates(found.length)}",
            f"  prefix survival          {_estimates(found.survival)}",
            f"  conditional acceptance   {_estimates(found.conditional)}",
            "  confidence AUC           " + " ".join(f"{value:6.3f}" for value in trust.auc),
            f"  confidence ECE, %        {_percent(trust.ece)}{floor}",
            f"    noise floor, %         {_percent(trust.ece_floor)}",
            "  confidence Brier         " + " ".join(f"{value:6.3f}" for value in trust.brier),
            "    noise floor            "
            + " ".join(f"{value:6.3f}" for value in trust.brier_floor),
        ]
    )


def _context_table(context: ByContext) -> str:
    """Accepted length as the context grows."""
    lines = ["accepted length by context"]
    lines += [
        f"  {bucket.low:>6} to {bucket.high - 1:<6} {_estimates(bucket.length)}  "
        f"({bucket.rounds} rounds)"
        for bucket in context.buckets
    ]
    return "\n".join(lines)


def prompt_warnings(tokenizer: Any, prompts: Sequence[Prompt], vocabulary: int) -> dict[str, str]:
    """Domains whose prompts look random, with the sentence for each."""
    rows: dict[str, list[list[int]]] = {}
    for prompt in prompts:
        rows.setdefault(prompt.domain, []).append(prompt_tokens(tokenizer, prompt, []))
    says = {domain: random_prompts(tokens, vocabulary) for domain, tokens in rows.items()}
    return {domain: sentence for domain, sentence in says.items() if sentence}


def report(recording: Recording) -> str:
    """Every domain's table, and where the time went."""
    tables = [
        domain_report(
            domain, acceptance(part), reliability(survival_of(part.logits), part.survived)
        )
        for domain, part in by_domain(recording.rounds).items()
    ]
    context = by_context(recording.rounds)
    if context is not None:
        tables.append(_context_table(context))
    spent = ", ".join(f"{part} {recording.seconds[part]:.2f}" for part in PARTS)
    return "\n".join([*tables, f"seconds: {spent}; {recording.tokens} tokens"])


def write_figures(folder: Path, recording: Recording, *, name: str) -> list[Path]:
    """The three pictures of one drafter."""
    parts = by_domain(recording.rounds)
    found = {name: {domain: acceptance(part) for domain, part in parts.items()}}
    rounds = recording.rounds
    raw = survival_of(rounds.logits)
    pictures = {
        "conditional_acceptance.png": acceptance_figure(found),
        "threshold_sweep.png": threshold_figure(
            {domain: threshold_sweep(part, THRESHOLDS) for domain, part in parts.items()}
        ),
        "reliability.png": reliability_figure(
            {"raw": raw}, rounds.survived, {"raw": reliability(raw, rounds.survived)}
        ),
    }
    for file, figure in pictures.items():
        save_figure(figure, folder / file)
    return [folder / file for file in pictures]


def drafter_name(folder: str | Path) -> str:
    """What reports call a checkpoint: its folder, or its run's where that is just a step."""
    path = Path(folder).resolve()
    return path.parent.name if path.name.startswith("step_") else path.name


def choose_prompts(
    files: Sequence[str], per_domain: int | None = None, *, skip: int = 0
) -> list[Prompt]:
    """The files' prompts after each one's first ``skip``, at most ``per_domain`` of each domain.

    A prompt without a domain has its file's name for one.
    """
    chosen: list[Prompt] = []
    taken: dict[str, int] = {}
    for file in files:
        for prompt in read_prompts(file)[skip:]:
            if prompt.domain == "default":
                prompt = dataclasses.replace(prompt, domain=Path(file).stem)
            taken[prompt.domain] = taken.get(prompt.domain, 0) + 1
            if per_domain is None or taken[prompt.domain] <= per_domain:
                chosen.append(prompt)
    if not chosen:
        raise ValueError(f"{', '.join(files)}: no prompts are left after --skip {skip}; lower it")
    return chosen


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    """An evaluation goes on only with what it began with."""
    beside = folder / "settings.json"
    if not beside.exists():
        write_json(beside, settings)
        return
    refuse_other_settings(beside, settings, what=str(folder), again="a new folder")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Measure a drafter on prompts: what is accepted, how true its confidences are, "
        "and a log of rounds for draft calibrate and for --acceptance of run. Killed, the same "
        "command goes on.",
        examples=["prompts.jsonl --target TARGET --drafter run/step_1000 -o eval"],
        page="docs/metrics.md",
    )
    parser.add_argument(
        "prompts", nargs="+", metavar="PROMPTS", help="JSONL: turns (DeepSpec), text or tokens"
    )
    parser.add_argument("--target", required=True, help="folder of the target model")
    parser.add_argument("--drafter", required=True, help="checkpoint folder")
    parser.add_argument("-o", "--out", required=True, help="folder for the results")
    parser.add_argument("--per-domain", type=int, help="prompts of each domain, at most")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of each file first")
    parser.add_argument("--new-tokens", type=int, default=128, help="per answer, at most")
    parser.add_argument("--batch", type=int, default=32, help="prompts decoded together")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling; 0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="of sampling; 1: off")
    parser.add_argument("--top-k", type=int, default=0, help="of sampling; 0: off")
    parser.add_argument("--min-p", type=float, default=0.0, help="of sampling; 0: off")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the files' own")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument(
        "--lossless",
        type=int,
        default=0,
        metavar="N",
        help="also compare N greedy answers with the target's own; 0: none",
    )
    parser.add_argument("--profile", help="a published speculation_profile.json to compare with")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    given = _parser().parse_args(arguments)
    for flag in ("per_domain", "new_tokens", "batch"):
        value = getattr(given, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {value}: give 1 or more")
    sampling = Sampling(
        temperature=given.temperature, top_p=given.top_p, top_k=given.top_k, min_p=given.min_p
    )
    settings = Settings(
        sampling=sampling, new_tokens=given.new_tokens, batch=given.batch, seed=given.seed
    )
    for flag in ("skip", "lossless"):
        if getattr(given, flag) < 0:
            raise ValueError(f"--{flag} {getattr(given, flag)}: give 0 or more")
    published = read_profile(given.profile) if given.profile else None
    prompts = choose_prompts(given.prompts, given.per_domain, skip=given.skip)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, given.dtype) if given.dtype else None
    tokenizer = load_tokenizer(given.target)
    target = Target.from_pretrained(given.target, dtype=dtype, device=device)
    drafter = load_drafter(given.drafter, target=target, share=True, dtype=dtype, device=device)
    target.capture(drafter.config.layers_captured)
    folder = make_folder(given.out)
    identity = {
        "target": model_fingerprint(given.target),
        "drafter": model_fingerprint(given.drafter),
        "prompts": [file_sha256(path) for path in given.prompts],
        "per_domain": given.per_domain,
        "skip": given.skip,
        "dtype": str(target.dtype),
        **_plain(settings),
    }
    _check_same(folder, identity)
    with tqdm(total=len(prompts), desc="prompts", disable=None) as bar:
        recording = record(
            target=target,
            drafter=drafter,
            tokenizer=tokenizer,
            prompts=prompts,
            settings=settings,
            folder=folder / "parts",
            progress=bar.update,
        )
    write_rounds(folder / "rounds.parquet", recording.rounds)
    about: dict[str, Any] = {
        "target": str(given.target),
        "drafter": str(given.drafter),
        "sampling": sampling.label,
        "confidence_source": "head" if drafter.config.confident else "top probability",
        "device": str(target.device),
    }
    lossless = None
    if given.lossless:
        some = [prompt_tokens(tokenizer, prompt, []) for prompt in prompts[: given.lossless]]
        lossless = check_lossless(target, drafter, some, new_tokens=given.new_tokens)
        about["lossless"] = dataclasses.asdict(lossless)
    random = prompt_warnings(tokenizer, prompts, target.vocab_size)
    found = metrics(recording, about={**about, "random_prompts": random})
    write_json(folder / "metrics.json", found)
    block_size = drafter.config.block_size
    names = {"drafter": drafter_name(given.drafter), "target": Path(given.target).name}
    profile = profile_of(recording.rounds, **names, block_size=block_size)
    write_json(folder / PROFILE, profile)
    pictures = write_figures(folder, recording, name=drafter_name(given.drafter))
    print(f"{sampling.label}, gamma {drafter.config.gamma}")
    print(report(recording))
    if published is not None:
        print(compared(recording.rounds, published))
    if lossless is not None:
        print(lossless.sentence)
    says = {domain: [sentence] for domain, sentence in random.items()}
    for domain, sentences in found["warnings"].items():
        says.setdefault(domain, []).extend(sentences)
    for domain, sentences in says.items():
        for sentence in sentences:
            print(f"warning: {domain}: {sentence}", file=sys.stderr)
    written = ("metrics.json", "rounds.parquet", PROFILE)
    for path in (*(folder / name for name in written), *pictures):
        print(f"wrote {path}", file=sys.stderr)
    return 1 if lossless is not None and lossless.outcome != PASSED else 0
