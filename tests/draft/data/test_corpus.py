"""Laptop corpora: the same bytes every time, text that survives, answers as claimed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.draft.data.corpus import build_corpus, stdlib_documents, train_tokenizer
from sglang_dspark.draft.data.prompts import Prompt, read_prompts, write_prompts
from sglang_dspark.draft.data.templates import DOMAINS, templated_pairs
from sglang_dspark.draft.model.target import Target
from sglang_dspark.draft.training.pretrain import TargetRecipe, main, save_target, train_target
from tests.draft.tiny_target import tiny_corpus

TOKENIZER = tiny_corpus().tokenizer


@pytest.mark.law
@pytest.mark.parametrize("name", ["stdlib", "templated"])
def test_a_corpus_is_the_same_every_time(name: str) -> None:
    first, again = (
        build_corpus(name, prompts=5, vocabulary=400, documents=30, prompt_tokens=16)
        for _ in range(2)
    )
    assert np.array_equal(first.tokens, again.tokens)
    assert first.prompts == again.prompts
    assert first.tokenizer.backend_tokenizer.to_str() == again.tokenizer.backend_tokenizer.to_str()
    assert len(first.tokenizer) == 400
    assert 0 <= first.tokens.min() <= first.tokens.max() < 400


@pytest.mark.law
@settings(max_examples=60, deadline=None)
@given(st.text())
def test_the_tokenizer_gives_back_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.law
def test_stdlib_prompts_come_from_modules_that_the_target_never_sees() -> None:
    corpus = build_corpus("stdlib", prompts=20, vocabulary=400, documents=40, prompt_tokens=32)
    learned = corpus.tokenizer.decode(corpus.tokens)
    documents = stdlib_documents()[:40]
    kept_out = [text for i, text in enumerate(documents) if i % 20 == 7]
    assert all(text not in learned for text in kept_out if text)
    pool = "".join(kept_out)
    for prompt in corpus.prompts:
        assert prompt.tokens is not None
        assert len(prompt.tokens) == 32
        assert corpus.tokenizer.decode(list(prompt.tokens)).strip("\ufffd") in pool


@pytest.mark.law
def test_templated_answers_are_json_and_python() -> None:
    pairs = templated_pairs(300, seed=3)
    assert {domain for domain, _, _ in pairs} == set(DOMAINS)
    for domain, _, answer in pairs:
        if domain == "json":
            assert json.loads(answer)["items"]
        if domain == "code":
            compile(answer, "answer", "exec")
    assert pairs != templated_pairs(300, seed=4)


@pytest.mark.example
def test_a_chat_prompt_renders_with_its_special_tokens() -> None:
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|user|>hi<|assistant|>"
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<|user|>", "<|assistant|>"]
    assert (TOKENIZER.eos_token_id, TOKENIZER.mask_token_id) == (0, 1)


@pytest.mark.example
def test_a_target_learns_and_is_an_ordinary_model_folder(tmp_path: Path) -> None:
    corpus = tiny_corpus()
    recipe = TargetRecipe(hidden=64, layers=2, window_tokens=48, batch=8, steps=40)
    model, loss = train_target(corpus, recipe, quiet=True)
    shares = np.bincount(corpus.tokens) / len(corpus.tokens)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert loss < entropy - 0.5  # context is used, not just frequencies
    folder = save_target(model, corpus.tokenizer, tmp_path / "target")
    target = Target.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([list(corpus.tokens[:16])])
    hidden, _ = target.prefill(tokens_BS=tokens)
    expected = model(input_ids=tokens).logits
    assert torch.allclose(target.logits(hidden), expected, atol=1e-5)
    with pytest.raises(ValueError, match="exists already"):
        save_target(model, corpus.tokenizer, folder)


@pytest.mark.example
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ('{"turns": ["a"]}\n{"turns": []}\n', r"p\.jsonl:2: .*turns is empty"),
        ('{"turns": ["a"], "text": "b"}\n', r"p\.jsonl:1: .*exactly one"),
        ('\n{"text": "a"\n', r"p\.jsonl:2: not valid JSON"),
        ('{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}\n', r"p\.jsonl:2: id 'x' appears"),
        ('{"tokens": [1, -2]}\n', r"p\.jsonl:1: tokens: expected a list of token ids"),
        ('{"turn": ["a"]}\n', r"p\.jsonl:1: unknown key 'turn'; did you mean 'turns'"),
        ("[1]\n", r"p\.jsonl:1: expected an object"),
        ("\n", "no prompts"),
    ],
)
def test_a_wrong_prompt_is_refused_with_its_line(
    tmp_path: Path, prompts: str, message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(prompts)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


@pytest.mark.law
def test_prompts_read_back_as_written(tmp_path: Path) -> None:
    prompts = [
        Prompt(id="a", domain="chat", turns=("héllo", "again\n")),
        Prompt(id="b", text="x"),
        Prompt(id="c", tokens=(1, 2)),
    ]
    write_prompts(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts
    assert read_prompts(tmp_path / "p.jsonl", limit=2) == prompts[:2]


@pytest.mark.example
def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocabulary 100: .* at least 260"):
        train_tokenizer(["text"], vocabulary=100)
    with pytest.raises(ValueError, match="choose one of stdlib, templated"):
        build_corpus("novels", prompts=1)
    with pytest.raises(ValueError, match="--steps 0"):
        main(["stdlib", "--out", str(tmp_path / "t"), "--steps", "0"])
    with pytest.raises(ValueError, match="exists already"):
        main(["stdlib", "--out", str(tmp_path)])
