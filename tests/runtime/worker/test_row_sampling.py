"""Every row of a speculative step samples as plain decoding would after committing its drafts."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sglang")
from tests.runtime.worker.row_scenes import (
    TOKENIZER,
    K,
    Plain,
    Step,
    V,
    batch_info,
    block,
    request,
    row_sampling,
    server,
)
from tests.waiting import HUNG_S

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sglang.srt.constrained.reasoner_grammar_backend import ReasonerGrammarObject
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar

    from sglang_dspark.runtime.kernels.head import draft_block
    from sglang_dspark.runtime.worker.sampling.draw import RowSampling, committed
    from sglang_dspark.runtime.worker.sampling.filters import filtered, filtered_by_kernels
    from sglang_dspark.runtime.worker.sampling.penalties import TokenHistories, resume, stop_tokens
    from sglang_dspark.runtime.worker.sampling.rows import owners, starts

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "greedy": {"temperature": 0.0},
    "top_k_1": {"top_k": 1, "temperature": 0.7},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8, "temperature": 1.3},
    "min_p": {"min_p": 0.1},
    "qwen3": {"top_k": 20, "top_p": 0.95, "temperature": 0.6},
    "filters": {"top_k": 12, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9},
    "negative": {"frequency_penalty": -0.7, "presence_penalty": -0.3},
    "repetition": {"repetition_penalty": 1.4},
    "min_new_tokens": {"min_new_tokens": 8, "stop_token_ids": [3, 11]},
    "logit_bias": {"logit_bias": {"4": 6.0, "30": -100.0}},
    "everything": {
        "presence_penalty": 0.4,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.2,
        "min_new_tokens": 7,
        "logit_bias": {"4": 2.0, "30": -9.0},
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.01,
    },
}


@pytest.fixture(autouse=True)
def plain_server() -> Iterator[None]:
    """Server arguments without determinism."""
    with server():
        yield


def check_rows(step: Step, *, histories: TokenHistories, outputs: list[list[int]]) -> None:
    """All rows against plain decoding; ``outputs`` is what was truly committed."""
    sampling = row_sampling(step.reqs, histories)
    adjusted_MV = sampling.adjust(step.logits_MV.clone(), **step.layout)
    weights_MV = sampling.probabilities(adjusted_MV, lengths_R=step.lengths_R)
    for i, j, row in step.rows():
        req = step.reqs[i]
        plain = Plain(request_like(req, outputs[i]))
        for token in step.drafts_RK[i, :j].tolist():
            plain.see(token)
        expected_V = plain.adjusted(step.logits_MV[row])
        torch.testing.assert_close(adjusted_MV[row], expected_V, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(weights_MV[row], plain.weights(expected_V), rtol=0.0, atol=1e-6)


def request_like(req: Any, output: list[int]) -> Any:
    """The same parameters, another history."""
    other = request(req.rid, output=output, grammar=req.grammar)
    other.sampling_params = req.sampling_params
    return other


@pytest.mark.law
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_samples_as_plain_decoding_does_after_its_drafts(kind: str) -> None:
    outputs = [[4], [4, 4, 8, 2], []]
    reqs = [request(str(i), output=output, **KINDS[kind]) for i, output in enumerate(outputs)]
    step = Step(reqs, lengths=[4, 2, 0], seed=len(kind))
    check_rows(step, histories=TokenHistories(vocab_size=V, device="cpu"), outputs=outputs)


@pytest.mark.law
@pytest.mark.parametrize("seed", range(3))
def test_so_does_every_row_of_a_batch_of_all_kinds(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    outputs = [
        torch.randint(0, 9, (int(torch.randint(0, 12, (1,), generator=draws)),), generator=draws)
        for _ in KINDS
    ]
    listed = [output.tolist() for output in outputs]
    reqs = [
        request(name, output=output, **params)
        for (name, params), output in zip(KINDS.items(), listed, strict=True)
    ]
    lengths = torch.randint(0, K + 1, (len(reqs),), generator=draws).tolist()
    step = Step(reqs, lengths=lengths, seed=seed)
    check_rows(step, histories=TokenHistories(vocab_size=V, device="cpu"), outputs=listed)


@pytest.mark.law
def test_histories_know_what_was_committed_though_requests_lag_behind() -> None:
    """Steps without ``output_ids`` moving, requests that come and go, and a retraction."""
    draws = torch.Generator().manual_seed(0)
    histories = TokenHistories(vocab_size=V, device="cpu")
    kinds = ["presence", "ordinary", "everything", "repetition", "min_new_tokens", "frequency"]
    reqs = [request(f"{n}-{kind}", **KINDS[kind]) for n, kind in enumerate(kinds * 3)]
    truth: dict[str, list[int]] = {}
    live = reqs[:2]
    for count in range(24):
        coming = [req for req in reqs if req.rid not in truth][: 1 + count % 3]
        first_R = torch.randint(0, 9, (len(coming),), generator=draws)
        histories.begin(coming, first_R)
        for req, token in zip(coming, first_R.tolist(), strict=True):
            truth[req.rid] = [*req.output_ids, token]
        live = [req for req in reqs if req.rid in truth]
        # Tokens past a request's count are padding of any kind.
        tokens_RT = torch.randint(0, 9, (len(live), K + 1), generator=draws)
        counts_R = torch.randint(1, K + 2, (len(live),), generator=draws)
        padding = torch.arange(K + 1) >= counts_R[:, None]
        histories.commit(live, tokens_RT.masked_fill(padding, -1), counts_R)
        for req, tokens, number in zip(live, tokens_RT.tolist(), counts_R.tolist(), strict=True):
            truth[req.rid] += tokens[:number]
        if count % 5 == 4:  # Retracted: what it has output is complete when it starts again.
            gone = live[count % len(live)]
            gone.output_ids.extend(truth.pop(gone.rid)[len(gone.output_ids) :])
            live.remove(gone)
        if count % 8 == 7:
            step = Step(live, lengths=[j % (K + 1) for j in range(len(live))], seed=count)
            outputs = [truth[req.rid] for req in live]
            check_rows(step, histories=histories, outputs=outputs)


@pytest.mark.example
def test_histories_keep_only_requests_with_penalties_and_only_while_they_decode() -> None:
    histories = TokenHistories(vocab_size=V, device="cpu")
    reqs = [request(str(n), presence_penalty=n % 2) for n in range(40)]
    histories.begin(reqs, torch.zeros(40, dtype=torch.int64))
    assert len(histories) == 20
    rest = reqs[30:]
    histories.commit(rest, torch.zeros(10, K + 1, dtype=torch.int64), torch.ones(10).long())
    assert len(histories) == 5
    histories.commit([], torch.zeros(0, K + 1, dtype=torch.int64), torch.zeros(0).long())
    assert len(histories) == 0


@pytest.mark.example
def test_a_chunk_of_a_prompt_is_begun_again_with_the_next() -> None:
    histories = TokenHistories(vocab_size=V, device="cpu")
    req = request("a", frequency_penalty=1.0)
    for token in (8, 8, 6):
        histories.begin([req], torch.tensor([token]))
    step = Step([req], lengths=[0], seed=0)
    check_rows(step, histories=histories, outputs=[[6]])


@pytest.mark.law
@pytest.mark.parametrize("kind", ["presence", "repetition", "min_new_tokens", "everything"])
def test_the_stock_sampler_is_told_what_retracted_requests_had_generated(kind: str) -> None:
    outputs = [[4, 8, 4], [], [6, 6]]
    reqs = [request(str(n), output=output, **KINDS[kind]) for n, output in enumerate(outputs)]
    reqs.append(request("ordinary", output=[4]))
    logits_RV = 3 * torch.randn(4, V, generator=torch.Generator().manual_seed(2))
    _batch, info = batch_info(reqs)
    info = info.copy_for_forward()
    resume(reqs, info)
    adjusted_RV = logits_RV.clone()
    info.apply_logits_bias(adjusted_RV)
    for req, logits_V, adjusted_V in zip(reqs, logits_RV, adjusted_RV, strict=True):
        torch.testing.assert_close(adjusted_V, Plain(req).adjusted(logits_V))


@pytest.mark.example
def test_requests_without_a_tokenizer_end_with_their_own_stop_tokens() -> None:
    req = request("a", stop_token_ids=[9, 4])
    assert stop_tokens(req) == [4, TOKENIZER.eos_token_id, 7, 9]
    req.tokenizer = None
    assert stop_tokens(req) == [4, 9]


@pytest.mark.law
def test_rows_find_their_request() -> None:
    lengths_R = torch.tensor([2, 0, 0, 4, 1])
    start_R = starts(lengths_R)
    assert start_R.tolist() == [0, 3, 4, 5, 10]
    expected = torch.arange(5).repeat_interleave(lengths_R + 1).tolist()
    assert owners(start_R, 12).tolist() == expected
    assert owners(start_R, 15).tolist() == [*expected, 4, 4, 4]


# --- grammar -----------------------------------------------------------------


def grammar(pattern: str) -> Any:
    """xgrammar's, over an alphabet: token n is the letter n of a to z, token 5 ends."""
    xgrammar = pytest.importorskip("xgrammar")
    words = [chr(97 + n) if n < 26 else f"<{n}>" for n in range(V)]
    words[TOKENIZER.eos_token_id] = "</s>"
    info = xgrammar.TokenizerInfo(words, stop_token_ids=[TOKENIZER.eos_token_id])
    compiled = xgrammar.GrammarCompiler(info).compile_regex(pattern)
    return XGrammarGrammar(
        xgrammar.GrammarMatcher(compiled, max_rollback_tokens=200), V, compiled, None
    )


def allowed(pattern: str, tokens: list[int]) -> list[int]:
    """What may follow, by xgrammar's own application of a mask."""
    import xgrammar

    one = grammar(pattern)
    for token in tokens:
        one.accept_token(token)
    mask = xgrammar.allocate_token_bitmask(1, V)
    one.fill_vocab_mask(mask, 0)
    logits_V = torch.zeros(1, V)
    xgrammar.apply_token_bitmask_inplace(logits_V, mask)
    return logits_V[0].isfinite().nonzero().flatten().tolist()


A, B, C, END = 0, 1, 2, 5


@pytest.mark.law
@pytest.mark.parametrize(
    ("drafts", "legal"),
    [
        ([A, B, A, C], 4),
        ([A, A, A, A], 4),
        ([A, 9, A, C], 1),
        ([9, A, A, C], 0),
        ([A, C, END, A], 3),  # The grammar ends within the step.
    ],
)
def test_a_grammar_allows_at_each_row_what_may_follow_the_drafts(
    drafts: list[int], legal: int
) -> None:
    pattern, output = "[ab]+c", [B]
    constrained = grammar(pattern)
    constrained.accept_token(B)
    reqs = [
        request("free"),
        request("tied", output=output, grammar=constrained, logit_bias={"0": 2.0, "9": 50.0}),
        request("over", grammar=grammar("a"), temperature=0.0),
    ]
    for token in (A, END):
        reqs[2].grammar.accept_token(token)
    step = Step(reqs, lengths=[2, 4, 1], seed=1)
    step.drafts_RK[1] = torch.tensor(drafts)
    before = constrained.accepted_tokens.copy(), constrained.current_token
    sampling = row_sampling(reqs)
    adjusted_MV = sampling.adjust(step.logits_MV.clone(), **step.layout)
    weights_MV = sampling.probabilities(adjusted_MV, lengths_R=step.lengths_R)
    assert (constrained.accepted_tokens, constrained.current_token) == before
    assert not constrained.is_terminated()
    first = int(step.start_R[1])
    biased_MV = step.logits_MV.clone()
    biased_MV[first : first + 5, 0] += 2.0
    biased_MV[first : first + 5, 9] += 50.0
    for j in range(legal + 1):
        row = first + j
        if drafts[:j] and drafts[j - 1] == END:
            break
        follow = allowed(pattern, output + drafts[:j])
        assert adjusted_MV[row].isfinite().nonzero().flatten().tolist() == follow
        torch.testing.assert_close(adjusted_MV[row, follow], biased_MV[row, follow])
    if legal < 4 and END not in drafts:
        assert weights_MV[first + legal, drafts[legal]] == 0
        # Whatever the drafter thought of it and however often it tries.
        sure_KV = torch.zeros(3, K, V).scatter_(2, step.drafts_RK[..., None], 1.0)
        accepted_R, next_R = sampling.choose(
            weights_MV,
            block=block(step.drafts_RK, sure_KV),
            start_R=step.start_R,
            lengths_R=step.lengths_R,
            positions_M=step.positions_M,
            uniform_RT=torch.zeros(3, K + 1, dtype=torch.float64),
        )
        assert accepted_R[1] <= legal
        assert int(next_R[1]) in allowed(pattern, output + drafts[: int(accepted_R[1])])
    # Requests without a grammar, and one whose grammar is done, are left alone.
    for i in (0, 2):
        rows = slice(int(step.start_R[i]), int(step.start_R[i]) + step.lengths[i] + 1)
        assert torch.equal(adjusted_MV[rows], step.logits_MV[rows])
    assert weights_MV.isfinite().all()


@pytest.mark.example
def test_a_grammar_that_waits_for_the_end_of_reasoning_begins_within_a_step() -> None:
    thought = 8
    waiting = ReasonerGrammarObject(grammar("[ab]+c"), think_end_id=thought)
    waiting.maybe_init_reasoning(True)
    waiting.accept_token(30)
    step = Step([request("a", grammar=waiting)], lengths=[4], seed=1)
    step.drafts_RK[0] = torch.tensor([9, thought, A, C])
    before = waiting.tokens_in_think, waiting.tokens_after_end
    adjusted_MV = row_sampling(step.reqs).adjust(step.logits_MV.clone(), **step.layout)
    follow = [row_V.isfinite().nonzero().flatten().tolist() for row_V in adjusted_MV]
    assert follow[:2] == [list(range(V))] * 2
    assert follow[2:] == [allowed("[ab]+c", tokens) for tokens in ([], [A], [A, C])]
    assert (waiting.tokens_in_think, waiting.tokens_after_end) == before
    assert waiting.grammar.accepted_tokens == []


@pytest.mark.example
def test_a_finished_request_has_no_grammar_left() -> None:
    req = request("a", grammar=grammar("a"))
    req.grammar.finished = True
    assert row_sampling([req]).constrained == []


# --- acceptance --------------------------------------------------------------

TABLE_VV = 1.2 * torch.randn(V, V, generator=torch.Generator().manual_seed(5))
"""The target's logits after each token."""


def chain_step(
    kinds: list[dict[str, Any]], *, each: int, seed: int, anchor: int | None = None
) -> tuple[Any, ...]:
    """``each`` requests of every kind draft two tokens from a poor model of the table and verify
    some of them: (sampling, block, logits of all rows, layout, kind of each request, draws)."""
    draws = torch.Generator().manual_seed(seed)
    prototypes = [request(f"k{n}", **params) for n, params in enumerate(kinds)]
    kind_R = torch.arange(len(kinds)).repeat(each)
    reqs = prototypes * each
    sampling = row_sampling(reqs)
    anchors_R = torch.randint(0, V, (len(reqs),), generator=draws)
    if anchor is not None:
        anchors_R = torch.full_like(anchors_R, anchor)
    uniform_RK = torch.rand(len(reqs), 2, generator=draws, dtype=torch.float64)
    poor_VV = TABLE_VV + 0.8 * torch.randn(V, V, generator=draws)
    chooser = sampling.drafter_choice(uniform_RK)
    # Slot by slot, since the table looks at the token before.
    tokens, weights, previous_R = [], [], anchors_R
    for k in range(2):
        one = type(chooser)(
            temperature_R=chooser.temperature_R,
            uniform_RK=uniform_RK[:, k : k + 1],
        )
        slot = draft_block(
            markov_head=None,
            confidence_head=None,
            hidden_RKD=torch.zeros(len(reqs), 1, 1),
            logits_RKV=poor_VV[previous_R][:, None].clone(),
            anchors_R=previous_R,
            chooser=one,
        )
        previous_R = slot.tokens_RK[:, 0]
        tokens.append(previous_R)
        weights.append(slot.weights_RKV)
    drafted = block(torch.stack(tokens, 1), torch.cat(weights, 1))
    lengths_R = torch.randint(0, 3, (len(reqs),), generator=draws)
    start_R = starts(lengths_R)
    rows = int((lengths_R + 1).sum())
    chain_RT = torch.cat([anchors_R[:, None], drafted.tokens_RK], 1)
    owner_M = owners(start_R, rows)
    place_M = torch.arange(rows) - start_R[owner_M]
    logits_MV = TABLE_VV[chain_RT[owner_M, place_M]]
    layout = {"start_R": start_R, "lengths_R": lengths_R}
    return sampling, drafted, logits_MV, layout, kind_R, draws


def tail_probability(observed: Tensor, expected: Tensor) -> float:
    """Of a chi-square this large; cells that expect little are put together."""
    many = expected >= 8
    seen = torch.cat([observed[many], observed[~many].sum()[None]])
    meant = torch.cat([expected[many], expected[~many].sum()[None]])
    used = meant > 0
    assert seen[~used].sum() == 0
    statistic = ((seen - meant)[used] ** 2 / meant[used]).sum()
    freedom = (used.sum() - 1).clamp(min=1) / 2
    return float(torch.special.gammaincc(freedom.double(), statistic.double() / 2))


@pytest.mark.law
@pytest.mark.parametrize("broken", [False, True], ids=["", "a broken rule is caught"])
def test_a_mixed_batch_commits_tokens_distributed_as_each_request_samples(broken: bool) -> None:
    kinds = [KINDS[name] for name in ("ordinary", "greedy", "filters", "top_p", "qwen3")]
    sampling, drafted, logits_MV, layout, kind_R, draws = chain_step(
        kinds, each=20000, seed=3, anchor=6
    )
    if not broken:  # What is drafted is filtered for nobody: its tail may be drawn, and is refused.
        assert (drafted.weights_RKV[kind_R != 1] > 0).all()
    weights_MV = sampling.probabilities(logits_MV.clone(), lengths_R=layout["lengths_R"])
    if broken:  # As if the draft were right more often than it is.
        drafted.weights_RKV.sqrt_()
    accepted_R, next_R = sampling.choose(
        weights_MV,
        block=drafted,
        positions_M=torch.zeros(len(logits_MV), dtype=torch.int64),
        uniform_RT=torch.rand(len(kind_R), 3, generator=draws, dtype=torch.float64),
        **layout,
    )
    tokens_RT = committed(drafted.tokens_RK, accepted_R=accepted_R, next_R=next_R)
    # The distribution after each token, by one request of each kind that verifies nothing.
    worst = 1.0
    for number, params in enumerate(kinds):
        alone = row_sampling([request("a", **params)] * V)
        law_VV = alone.probabilities(TABLE_VV.clone(), lengths_R=torch.zeros(V).long()).double()
        mine_R = kind_R == number
        first_R = tokens_RT[mine_R, 0]
        second_R = tokens_RT[mine_R, 1]
        known_R = accepted_R[mine_R] >= 1
        drawn_R = torch.multinomial(law_VV[first_R], 1, generator=draws).squeeze(1)
        second_R = torch.where(known_R, second_R, drawn_R)
        joint_VV = law_VV[6][:, None] * law_VV
        observed_VV = torch.zeros(V * V, dtype=torch.float64)
        observed_VV.index_add_(0, first_R * V + second_R, torch.ones(len(first_R)).double())
        if number != 1:
            assert 0.05 < float(known_R.double().mean()) < 0.95
            expected = joint_VV.flatten() * len(first_R)
            worst = min(worst, tail_probability(observed_VV, expected))
        elif not broken:
            assert observed_VV.argmax() == joint_VV.argmax()
            assert observed_VV.max() == len(first_R)
    assert (worst < 1e-6) if broken else (worst > 1e-4)


@pytest.mark.law
def test_a_greedy_batch_needs_no_probabilities_and_commits_what_they_would() -> None:
    kinds = [KINDS["greedy"], KINDS["top_k_1"]]
    sampling, drafted, logits_MV, layout, _, draws = chain_step(kinds, each=300, seed=4)
    choice = {
        "block": drafted,
        "positions_M": torch.zeros(len(logits_MV), dtype=torch.int64),
        "uniform_RT": torch.rand(600, 3, generator=draws, dtype=torch.float64),
        **layout,
    }
    weights_MV = sampling.probabilities(logits_MV, lengths_R=layout["lengths_R"])
    slow = sampling.choose(weights_MV, **choice)
    fast = sampling.verify(logits_MV, **choice)
    assert all(torch.equal(one, other) for one, other in zip(slow, fast, strict=True))
    assert (fast[0] <= layout["lengths_R"]).all()
    assert fast[0].max() == 2


@pytest.mark.example
def test_probabilities_may_take_the_place_of_the_logits() -> None:
    for kinds in (["greedy"], ["ordinary", "greedy", "filters"], ["top_p"], ["temperature"]):
        reqs = [request(name, **KINDS[name]) for name in kinds]
        step = Step(reqs, lengths=[2, 0, 4][: len(reqs)], seed=9)
        sampling = row_sampling(reqs)
        kept_MV = step.logits_MV.clone()
        weights_MV = sampling.probabilities(kept_MV, lengths_R=step.lengths_R)
        assert torch.equal(kept_MV, step.logits_MV)
        again_MV = sampling.probabilities(kept_MV, lengths_R=step.lengths_R, overwrite=True)
        assert torch.equal(again_MV, weights_MV)
        assert again_MV.data_ptr() == kept_MV.data_ptr()


@pytest.mark.law
def test_logits_cut_from_a_padded_vocabulary_give_probabilities_without_gaps() -> None:
    reqs = [request("a"), request("b", **KINDS["filters"])]
    step = Step(reqs, lengths=[2, 1], seed=3)
    cut_MV = torch.cat([step.logits_MV, torch.full((5, 23), 99.0)], 1)[:, :V]
    sampling = row_sampling(reqs)
    weights_MV = sampling.probabilities(cut_MV, lengths_R=step.lengths_R, overwrite=True)
    expected_MV = sampling.probabilities(step.logits_MV, lengths_R=step.lengths_R)
    assert torch.equal(weights_MV, expected_MV)
    assert weights_MV.is_contiguous()


@pytest.mark.law
@pytest.mark.parametrize("seed", range(4))
def test_filters_keep_the_same_by_sort_by_top_k_and_by_kernels(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    weights_NV = (2 * torch.randn(60, V, generator=draws)).softmax(-1)
    limits = {
        "top_k_N": torch.randint(1, 15, (60,), generator=draws),
        "top_p_N": 0.05 + 0.95 * torch.rand(60, generator=draws),
        "min_p_N": 0.1 * torch.rand(60, generator=draws),
    }
    whole_NV = filtered(weights_NV, most=V, **limits)
    torch.testing.assert_close(whole_NV.sum(-1), torch.ones(60))
    assert not torch.equal(whole_NV > 0, weights_NV > 0)
    torch.testing.assert_close(filtered(weights_NV, most=14, **limits), whole_NV)
    alone = {"top_k_N": torch.full((60,), V), "top_p_N": torch.ones(60)}
    nothing_N = torch.zeros(60)

    def top_k(one_NV: Tensor, limit_N: Tensor) -> Tensor:
        return filtered(one_NV, most=V, **(alone | {"top_k_N": limit_N}), min_p_N=nothing_N)

    def top_p(one_NV: Tensor, limit_N: Tensor) -> Tensor:
        return filtered(one_NV, most=V, **(alone | {"top_p_N": limit_N}), min_p_N=nothing_N)

    kernels_NV = filtered_by_kernels(weights_NV, kernels=(top_k, top_p), **limits)
    torch.testing.assert_close(kernels_NV, whole_NV)


@pytest.mark.law
def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whoever asks for one raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    names = ["ordinary", "greedy", "temperature", "filters", "everything", "logit_bias"]
    for deterministic in (False, True):
        with server(deterministic=deterministic):
            reqs = [request(name, output=[4, 4], **KINDS[name]) for name in names]
            histories = TokenHistories(vocab_size=V, device="cpu")
            sampling = row_sampling(reqs, histories)
            histories.penalties(reqs)
        step = Step(reqs, lengths=[4, 0, 2, 1, 3, 2], seed=0)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            layout = {name: fake.from_tensor(value) for name, value in step.layout.items()}
            drafts_RK = layout.pop("drafts_RK")
            logits_MV = fake.from_tensor(step.logits_MV)
            sampling.adjust(logits_MV, drafts_RK=drafts_RK, **layout)
            accepted_R, next_R = sampling.verify(
                logits_MV,
                block=block(drafts_RK, torch.zeros(6, K, V)),
                positions_M=torch.zeros(len(logits_MV), dtype=torch.int64),
                uniform_RT=torch.zeros(6, K + 1, dtype=torch.float64),
                start_R=layout["start_R"],
                lengths_R=layout["lengths_R"],
            )
            tokens_RT = committed(drafts_RK, accepted_R=accepted_R, next_R=next_R)
            histories.commit(reqs, tokens_RT, accepted_R + 1)
            with pytest.raises(RuntimeError):
                accepted_R.max().item()


# --- log-probabilities -------------------------------------------------------


@pytest.mark.law
@pytest.mark.parametrize("names", [["greedy", "greedy"], ["everything", "greedy", "top_p"]])
def test_logprobs_are_those_that_plain_decoding_reports(names: list[str]) -> None:
    reqs = [request(f"{n}{name}", **KINDS[name]) for n, name in enumerate(names)]
    step = Step(reqs, lengths=[3, 1, 4][: len(reqs)], seed=8)
    batch, info = batch_info(reqs)
    histories = TokenHistories(vocab_size=V, device="cpu")
    sampling = RowSampling(reqs, info.copy_for_forward(), histories=histories, gamma=K)
    adjusted_MV = sampling.adjust(step.logits_MV.clone(), **step.layout)
    output = SimpleNamespace(next_token_logits=adjusted_MV)
    batch.sampling_info, batch.seq_lens = info, torch.zeros(len(reqs))
    batch.top_logprobs_nums = [2, 0, 3][: len(reqs)]
    batch.token_ids_logprobs = [None, [1, 8], [0]][: len(reqs)]
    accepted_R, next_R = torch.tensor([2, 1, 0])[: len(reqs)], torch.tensor([7, 12, 3])
    next_R = next_R[: len(reqs)]
    sampling.logprobs(
        batch,
        output,
        drafts_RK=step.drafts_RK,
        start_R=step.start_R,
        accepted_R=accepted_R,
        next_R=next_R,
    )
    tokens_RT = committed(step.drafts_RK, accepted_R=accepted_R, next_R=next_R)
    assert output.next_token_logprobs.shape == (len(reqs), K + 1)
    for i, count in enumerate(accepted_R.tolist()):
        assert tokens_RT[i, : count + 1].tolist() == [
            *step.drafts_RK[i, :count].tolist(),
            int(next_R[i]),
        ]
        for j in range(count + 1):
            row_V = adjusted_MV[int(step.start_R[i]) + j] / info.temperatures[i]
            expected_V = row_V.log_softmax(-1)
            expected_V = expected_V.clamp(min=torch.finfo(torch.float32).min)
            torch.testing.assert_close(
                output.next_token_logprobs[i, j], expected_V[tokens_RT[i, j]]
            )
            flat = i * (K + 1) + j
            most = batch.top_logprobs_nums[i]
            best = expected_V.topk(most)
            torch.testing.assert_close(output.next_token_top_logprobs_val[flat], best.values)
            assert output.next_token_top_logprobs_idx[flat].tolist() == best.indices.tolist()
            asked = batch.token_ids_logprobs[i]
            if asked is not None:
                torch.testing.assert_close(
                    output.next_token_token_ids_logprobs_val[flat], expected_V[asked]
                )


# --- seeds -------------------------------------------------------------------


@pytest.mark.law
def test_seeded_requests_get_the_tokens_of_the_stock_seeded_sampler() -> None:
    """In a process of its own, where Triton interprets SGLang's hash and nothing is compiled."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.runtime.worker.seeded_rows"],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
