"""Seeded requests, decoded speculatively and plainly by SGLang's own sampler: the same tokens.

python tests/runtime/worker/seeded_rows.py, with TRITON_INTERPRET=1 and TORCHDYNAMO_DISABLE=1.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers import sampler
from sglang.srt.layers.utils.hash import murmur_hash32
from torch import Tensor

from sglang_dspark.runtime.worker.sampling import seeds as sampling_seeds
from sglang_dspark.runtime.worker.sampling.draw import committed
from sglang_dspark.runtime.worker.sampling.rows import owners, starts
from tests.runtime.worker.row_scenes import K, Plain, V, block, request, row_sampling, server

TABLE_VV = 1.2 * torch.randn(V, V, generator=torch.Generator().manual_seed(5))
KINDS: list[dict[str, Any]] = [
    {"sampling_seed": 7},
    {"sampling_seed": -(2**40) + 1, "temperature": 0.8},
    {"temperature": 0.0},
    {},
    {"sampling_seed": 7, "top_p": 0.8},
    {"sampling_seed": 2**33 + 5, "top_k": 6, "top_p": 0.9, "temperature": 1.4},
]


def check_hash() -> None:
    """Both versions of the hash and of the draw."""
    draws = torch.Generator().manual_seed(0)
    seeds = torch.randint(-(2**62), 2**62, (6,), generator=draws)
    positions = torch.randint(0, 2**20, (6,), generator=draws)
    columns = torch.arange(1500)
    stock = murmur_hash32(seeds.to(torch.uint64), positions, columns)
    assert torch.equal(stock.long(), sampling_seeds.murmur_hash32(seeds, positions, columns))
    logprobs = torch.randn(6, 1500, generator=draws).log_softmax(-1)
    arguments = (logprobs, seeds, positions)
    stock = sampler.multinomial_with_seed(*arguments)
    assert torch.equal(stock, sampling_seeds.multinomial_with_seed(*arguments))


def plain_tokens(params: dict[str, Any], *, anchor: int, count: int) -> list[int]:
    """SGLang's own, one by one; the anchor stands at position 10."""
    plain, tokens = Plain(request(**params)), [anchor]
    for n in range(count):
        tokens.append(plain.sampled(TABLE_VV[tokens[-1]], position=10 + n))
    return tokens


def speculative_tokens(kinds: list[dict[str, Any]], *, anchor: int, count: int) -> list[list[int]]:
    """Ragged steps with drafts that are right about half the time."""
    draws = torch.Generator().manual_seed(1)
    tokens = [[anchor] for _ in kinds]
    reqs = [request(str(n), **params) for n, params in enumerate(kinds)]
    accepted_most = 0
    while min(map(len, tokens)) <= count:
        sampling = row_sampling(reqs)
        lengths_R = torch.randint(0, K + 1, (len(reqs),), generator=draws)
        start_R = starts(lengths_R)
        owner_M = owners(start_R, int((lengths_R + 1).sum()))
        place_M = torch.arange(len(owner_M)) - start_R[owner_M]
        anchors_R = torch.tensor([row[-1] for row in tokens])
        at_R = torch.tensor([9 + len(row) for row in tokens])
        drafts_RK = guesses(kinds, tokens, draws)
        chain_RT = torch.cat([anchors_R[:, None], drafts_RK], 1)
        accepted_R, next_R = sampling.verify(
            TABLE_VV[chain_RT[owner_M, place_M]],
            block=block(drafts_RK, torch.rand(len(reqs), K, V, generator=draws)),
            start_R=start_R,
            lengths_R=lengths_R,
            positions_M=at_R[owner_M] + place_M,
            uniform_RT=torch.rand(len(reqs), K + 1, dtype=torch.float64, generator=draws),
        )
        accepted_most = max(accepted_most, int(accepted_R.max()))
        new_RT = committed(drafts_RK, accepted_R=accepted_R, next_R=next_R)
        for row, new, number in zip(tokens, new_RT.tolist(), accepted_R.tolist(), strict=True):
            row += new[: number + 1]
    assert accepted_most == K
    return [row[: count + 1] for row in tokens]


def guesses(kinds: list[dict[str, Any]], tokens: list[list[int]], draws: Any) -> Tensor:
    """The plain continuation, with a token here and there replaced."""
    rows = []
    for params, row in zip(kinds, tokens, strict=True):
        plain, chain = Plain(request(**params)), [row[-1]]
        for n in range(K):
            right = plain.sampled(TABLE_VV[chain[-1]], position=9 + len(row) + n)
            wrong = int(torch.randint(0, V, (1,), generator=draws))
            chain.append(wrong if float(torch.rand(1, generator=draws)) < 0.25 else right)
        rows.append(chain[1:])
    return torch.tensor(rows)


if __name__ == "__main__":
    check_hash()
    with server(deterministic=True):
        together = speculative_tokens(KINDS, anchor=6, count=40)
        for params, tokens in zip(KINDS, together, strict=True):
            expected = plain_tokens(params, anchor=6, count=40)
            assert tokens == expected, (params, tokens, expected)
        assert together[0] != together[1] != together[3]
