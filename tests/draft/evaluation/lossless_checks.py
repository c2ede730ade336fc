"""Chi-square checks that decoded tokens are distributed as the target samples them.

Three views of the same tokens, each exact under the hypothesis: every token's place in the target's
distribution given its own context (uniform), the joint law of two early tokens by enumeration, and
a two-sample comparison with plain sampling deep in the continuation, over independent requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import chi2, chi2_contingency

from sglang_dspark.draft.evaluation.sampling import Sampling, probabilities
from sglang_dspark.draft.model.target import Target
from tests.draft.tiny_pairs import VOCABULARY

LEAST = 1e-4
"""p-values below this reject."""

_PLACES = 20
_LEAST_EXPECTED = 8.0

Counts = npt.NDArray[np.float64]


def _p_value(observed: Counts, expected: Counts) -> float:
    """Pearson's test; cells that expect little are taken together."""
    order = np.argsort(expected.ravel(), kind="stable")
    observed, expected = observed.ravel()[order], expected.ravel()[order]
    small = int(np.searchsorted(expected, _LEAST_EXPECTED))
    first = small
    while first < len(expected) and expected[:first].sum() < _LEAST_EXPECTED:
        first += 1
    observed = np.append(observed[first:], observed[:first].sum())
    expected = np.append(expected[first:], expected[:first].sum())
    assert observed[expected <= 0].sum() == 0, "a token that the target never samples came out"
    keep = expected > 0
    statistic = ((observed[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    return float(chi2.sf(statistic, keep.sum() - 1))


def place_counts(
    target: Target, sampling: Sampling, prompt: list[int], tokens_NS: torch.Tensor
) -> Counts:
    """[20] how often a token's randomised place in its own conditional law fell into each part."""
    counts = np.zeros(_PLACES)
    rng = torch.Generator().manual_seed(99)
    for part in tokens_NS.split(4096):
        whole = torch.cat([torch.tensor(prompt).expand(len(part), -1), part], dim=1)
        hidden, _ = target.prefill(tokens_BS=whole)
        law = probabilities(
            logits=target.logits(hidden[:, len(prompt) - 1 : -1]), sampling=sampling
        ).double()
        own = law.gather(-1, part[..., None])
        # Tokens stand from the most to the least likely, equal ones by number.
        earlier = (law > own) | ((law == own) & (torch.arange(VOCABULARY) < part[..., None]))
        before = (law * earlier).sum(-1, keepdim=True)
        place = before + own * torch.rand(own.shape, generator=rng, dtype=torch.float64)
        bins = (place * _PLACES).long().clamp(max=_PLACES - 1).flatten()
        counts += np.bincount(bins.numpy(), minlength=_PLACES)
    return counts


def uniform_p(counts: Counts) -> float:
    """Places must be uniform."""
    return _p_value(counts, np.full(_PLACES, counts.sum() / _PLACES))


def pair_law(target: Target, sampling: Sampling, prompt: list[int]) -> Counts:
    """[V, V] the exact joint law of the second and third token after the prompt."""

    def next_law(contexts: list[list[int]]) -> torch.Tensor:
        hidden, _ = target.prefill(tokens_BS=torch.tensor(contexts))
        return probabilities(logits=target.logits(hidden[:, -1]), sampling=sampling).double()

    every = range(VOCABULARY)
    first = next_law([prompt])[0]
    second = next_law([[*prompt, x] for x in every])
    third = next_law([[*prompt, x, y] for x in every for y in every])
    joint = first[:, None, None] * second[:, :, None] * third.view(VOCABULARY, VOCABULARY, -1)
    law: Counts = joint.sum(0).numpy()
    return law


def pair_counts(tokens_NS: torch.Tensor, first: int) -> Counts:
    """[V, V] how often two neighbouring tokens came out at columns ``first`` and the next."""
    pairs = (tokens_NS[:, first] * VOCABULARY + tokens_NS[:, first + 1]).numpy()
    counts = np.bincount(pairs, minlength=VOCABULARY**2).astype(np.float64)
    return counts.reshape(VOCABULARY, VOCABULARY)


def pairs_p(law: Counts, tokens_NS: torch.Tensor) -> float:
    """Second and third token against their exact joint law."""
    return _p_value(pair_counts(tokens_NS, 1), law / law.sum() * len(tokens_NS))


def two_sample_p(one_NS: torch.Tensor, other_NS: torch.Tensor) -> float:
    """The last two tokens of independent requests, from two decoders."""
    table = np.stack(
        [pair_counts(sample, sample.shape[1] - 2).ravel() for sample in (one_NS, other_NS)]
    )
    common = table.sum(axis=0) >= 4 * _LEAST_EXPECTED
    rest = table[:, ~common].sum(axis=1, keepdims=True)
    table = np.concatenate([table[:, common], rest], axis=1)
    return float(chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)
