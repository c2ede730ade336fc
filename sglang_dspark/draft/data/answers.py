"""Prompts to samples: by our own sampler, group by group, or by a server, answer by answer.

Owns how a prompt becomes tokens and the two ways to resume: our own sampler commits whole groups,
so a resumed run writes the very file that an uninterrupted one does; a server's answers are
committed one by one as they arrive. Knows no drafter.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sglang_dspark.draft.data.prompts import Prompt
from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.data.samples import Sample, SampleLog
from sglang_dspark.draft.data.server import Server
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.target import Target


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: cannot load a tokenizer: {reason}; save one there") from None


def messages_of(prompt: Prompt, answers: Sequence[str]) -> list[dict[str, str]]:
    """The conversation up to the user's next message, given the answers so far."""
    assert prompt.turns is not None
    messages = []
    for turn, question in enumerate(prompt.turns[: len(answers) + 1]):
        messages.append({"role": "user", "content": question})
        if turn < len(answers):
            messages.append({"role": "assistant", "content": answers[turn]})
    return messages


def prompt_tokens(tokenizer: Any, prompt: Prompt, answers: Sequence[str]) -> list[int]:
    """The tokens that the target sees before its next answer."""
    if prompt.tokens is not None:
        return list(prompt.tokens)
    if prompt.text is not None:
        return list(tokenizer.encode(prompt.text))
    rendered = tokenizer.apply_chat_template(
        messages_of(prompt, answers), add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer.encode(rendered, add_special_tokens=False))


def stop_tokens(target: Target, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the generation config's, the model's and the tokenizer's."""
    found: set[int] = set()
    for owner in (getattr(target.model, "generation_config", None), target.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return found


def generate_local(
    prompts: Sequence[Prompt],
    *,
    target: Target,
    tokenizer: Any,
    log: SampleLog,
    sampling: Sampling,
    max_tokens: int,
    batch: int,
    seed: int,
    quiet: bool = False,
) -> None:
    """Answer what the log lacks, group by group.

    A group's answers depend on the group alone, and it is written whole: what a kill left of a
    group is dropped and drawn again, to the same tokens.
    """
    groups = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
    sizes = [sum(prompt.answers for prompt in group) for group in groups]
    whole = written = 0
    for size in sizes:
        if written + size > len(log.samples):
            break
        written, whole = written + size, whole + 1
    log.keep_first(written)
    stops = stop_tokens(target, tokenizer)
    total = sum(len(sample.response) for sample in log.samples)
    with tqdm(total=len(prompts), initial=whole * batch, desc="answers", disable=quiet) as bar:
        for number, group in enumerate(groups[whole:], whole):
            answers: list[list[Sample]] = [[] for _ in group]
            for turn in range(max(prompt.answers for prompt in group)):
                asked = [i for i, prompt in enumerate(group) if prompt.answers > turn]
                texts = [[sample.text or "" for sample in answers[i]] for i in asked]
                inputs = [
                    prompt_tokens(tokenizer, group[i], before)
                    for i, before in zip(asked, texts, strict=True)
                ]
                generator = torch.Generator().manual_seed(
                    (seed * 1_000_003 + number) * 1_009 + turn
                )
                outputs = answer_tokens(
                    target,
                    inputs,
                    sampling=sampling,
                    max_tokens=max_tokens,
                    stops=stops,
                    generator=generator,
                )
                for i, before, after in zip(asked, inputs, outputs, strict=True):
                    stopped = after[-1] in stops
                    several = group[i].answers > 1
                    body = after[:-1] if stopped else after
                    answers[i].append(
                        Sample(
                            id=group[i].id,
                            turn=turn,
                            domain=group[i].domain,
                            prompt=tuple(before),
                            response=tuple(after),
                            finish="stop" if stopped else "length",
                            text=tokenizer.decode(body) if several else None,
                        )
                    )
            log.append(sample for conversation in answers for sample in conversation)
            total += sum(len(s.response) for conversation in answers for s in conversation)
            bar.update(len(group))
            bar.set_postfix(tokens=total, refresh=False)


def _converse(
    prompt: Prompt, done: Sequence[Sample], *, server: Server, tokenizer: Any, seed: int
) -> list[Sample]:
    """The next answer of one conversation, as a list that is empty when all are there."""
    turn = len(done)
    if turn >= prompt.answers:
        return []
    texts = [sample.text or "" for sample in done]
    if prompt.turns is not None:
        text, finish = server.chat(messages_of(prompt, texts), seed=seed)
    else:
        given = list(prompt.tokens) if prompt.tokens is not None else prompt.text or ""
        text, finish = server.complete(given, seed=seed)
    response = list(tokenizer.encode(text, add_special_tokens=False))
    if finish == "stop" and tokenizer.eos_token_id is not None:
        response.append(tokenizer.eos_token_id)
    sample = Sample(
        id=prompt.id,
        turn=turn,
        domain=prompt.domain,
        prompt=tuple(prompt_tokens(tokenizer, prompt, texts)),
        response=tuple(response),
        finish=finish,
        text=text,
    )
    return [sample]


def generate_from_server(
    prompts: Sequence[Prompt],
    *,
    server: Server,
    tokenizer: Any,
    log: SampleLog,
    concurrency: int,
    seed: int,
    quiet: bool = False,
) -> None:
    """Answer what the log lacks, ``concurrency`` conversations at a time, each turn by turn.

    Answers are written as they arrive. The first failure that retries do not cure ends the run
    with what is there; run again to go on.
    """
    done: dict[str, list[Sample]] = {prompt.id: [] for prompt in prompts}
    for sample in sorted(log.samples, key=lambda sample: sample.key):
        if sample.id in done:
            done[sample.id].append(sample)
    waiting: queue.SimpleQueue[tuple[int, Prompt]] = queue.SimpleQueue()
    for number, prompt in enumerate(prompts):
        if len(done[prompt.id]) < prompt.answers:
            waiting.put((number, prompt))
    failures: list[BaseException] = []
    lock, stop = threading.Lock(), threading.Event()
    finished = len(prompts) - waiting.qsize()

    def work(bar: Any) -> None:
        while not stop.is_set():
            try:
                number, prompt = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                history = done[prompt.id]
                while not stop.is_set():
                    added = _converse(
                        prompt,
                        history,
                        server=server,
                        tokenizer=tokenizer,
                        seed=(seed * 1_000_003 + number) % (1 << 31),
                    )
                    if not added:
                        break
                    with lock:
                        log.append(added)
                    history += added
                with lock:
                    bar.update()
            except BaseException as error:
                failures.append(error)
                stop.set()

    with tqdm(total=len(prompts), initial=finished, desc="answers", disable=quiet) as bar:
        threads = [
            threading.Thread(target=work, args=(bar,), daemon=True) for _ in range(concurrency)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stop.set()
    if failures:
        raise failures[0]
