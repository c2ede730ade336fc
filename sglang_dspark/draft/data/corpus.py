"""The laptop corpora and their tokenizer: text that every machine with Python already has.

Owns two corpora, ``stdlib`` (source of the running Python's standard library) and ``templated``
(JSON, chat and code), the byte-level BPE tokenizer trained on each, and the split into training
text and prompts. Knows no model. Deterministic: the same Python gives the same bytes.
"""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sglang_dspark.draft.data.prompts import Prompt
from sglang_dspark.draft.data.templates import templated_pairs

CORPORA = ("stdlib", "templated")
EOS, MASK, USER, ASSISTANT = "<|eos|>", "<|mask|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}{{ message['content'] }}"
    "{{ '<|eos|>' if message['role'] == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Generated tables and test data: text that no user of the library writes or reads.
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "encodings", "pydoc_data"}
_SKIPPED_FOLDERS |= {"lib2to3", "ensurepip", "turtledemo", "__pycache__", "idle_test"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training tokens and prompts of one laptop corpus."""

    name: str
    """``stdlib`` or ``templated``."""
    tokenizer: PreTrainedTokenizerFast
    """Byte-level BPE with eos, mask and chat tokens, in the form that servers read."""
    tokens: NDArray[np.int64]
    """Training text, documents joined by eos."""
    prompts: tuple[Prompt, ...]
    """Prompts for the target to answer: unseen chat turns, or beginnings of unseen text."""


def stdlib_documents(root: Path | None = None) -> list[str]:
    """The standard library's modules, in path order; files that are not UTF-8 are left out."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            try:
                documents.append(path.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, OSError):
                continue
    if not documents:
        raise ValueError(
            f"{root}: no Python source found; install the standard library's .py files"
        )
    return documents


def train_tokenizer(texts: list[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts`` with exactly ``vocabulary`` entries, special tokens first.

    Text too uniform for so many is filled up with reserved tokens: the size is the recipe's.
    """
    specials = [EOS, MASK, USER, ASSISTANT]
    least = 256 + len(specials)
    if vocabulary < least:
        raise ValueError(f"vocabulary {vocabulary}: bytes and special tokens need at least {least}")
    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([f"<|reserved_{i}|>" for i in range(bpe.get_vocab_size(), vocabulary)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)]


def build_corpus(
    name: str,
    *,
    prompts: int,
    vocabulary: int = 1024,
    documents: int | None = None,
    prompt_tokens: int = 48,
    seed: int = 0,
) -> Corpus:
    """The corpus ``name`` with ``prompts`` unseen prompts.

    ``documents`` limits the training text (modules or templated pairs); None means all modules, or
    24,000 pairs. ``prompt_tokens`` is the length of a ``stdlib`` prompt. Prompts of ``stdlib`` are
    windows of training text's modules left out of the tokens (one module in twenty).
    """
    if name == "templated":
        return _templated(prompts, vocabulary, documents or 24_000, seed)
    if name == "stdlib":
        return _stdlib(prompts, vocabulary, documents, prompt_tokens, seed)
    raise ValueError(f"corpus {name!r}: choose one of {', '.join(CORPORA)}")


def _templated(prompts: int, vocabulary: int, documents: int, seed: int) -> Corpus:
    pairs = templated_pairs(documents, seed=seed)
    texts = [f"{USER}{prompt}{ASSISTANT}{answer}{EOS}" for _, prompt, answer in pairs]
    tokenizer = train_tokenizer([f"{p}\n{a}" for _, p, a in pairs[:3000]], vocabulary=vocabulary)
    asked = tuple(
        Prompt(id=f"{domain}-{i:06d}", domain=domain, turns=(prompt,))
        for i, (domain, prompt, _) in enumerate(templated_pairs(prompts, seed=seed + 1))
    )
    tokens = np.concatenate([np.asarray(ids, np.int64) for ids in _encode(tokenizer, texts)])
    return Corpus(name="templated", tokenizer=tokenizer, tokens=tokens, prompts=asked)


def _stdlib(
    prompts: int, vocabulary: int, documents: int | None, prompt_tokens: int, seed: int
) -> Corpus:
    texts = stdlib_documents()[:documents]
    tokenizer = train_tokenizer(texts, vocabulary=vocabulary)
    encoded = [np.asarray(ids, np.int64) for ids in _encode(tokenizer, texts)]
    kept_out = [ids for i, ids in enumerate(encoded) if i % 20 == 7] or encoded[:1]
    learned = [ids for i, ids in enumerate(encoded) if i % 20 != 7 or len(encoded) < 20]
    eos = np.asarray([tokenizer.eos_token_id], np.int64)
    tokens = np.concatenate([part for ids in learned for part in (ids, eos)])
    pool = np.concatenate(kept_out)
    if len(pool) <= prompt_tokens:
        raise ValueError(f"documents {documents}: too little text for a prompt; raise it")
    rng = random.Random(f"stdlib-prompts-{seed}")
    starts = [rng.randrange(len(pool) - prompt_tokens) for _ in range(prompts)]
    asked = tuple(
        Prompt(
            id=f"stdlib-{i:06d}",
            domain="stdlib",
            tokens=tuple(int(t) for t in pool[start : start + prompt_tokens]),
        )
        for i, start in enumerate(starts)
    )
    return Corpus(name="stdlib", tokenizer=tokenizer, tokens=tokens, prompts=asked)
