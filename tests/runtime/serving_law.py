"""Whether tokens that came over HTTP are distributed as the target samples them.

Four views of the same tokens, each exact under the hypothesis, with the target's distributions p
from transformers. Places: where a token stands in the target's distribution given its own context,
randomised within the token, is uniform; tokens stand from the most to the least likely. Open
places: the same where the target leaves a choice. Leanings: there again, but tokens stand by q/p, q
the drafter's distribution, since that is the way in which a wrong rule leans. Contexts: wherever
many requests came to the same context, what they drew next is multinomial. Which tokens are looked
at, and in which order they stand, depends on contexts alone, so looking is no selection.

Shapes: N answers to one prompt, S tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import chi2

from sglang_dspark.draft.evaluation.sampling import Sampling, probabilities
from tests.runtime.serving_scenes import Pair

LEAST = 1e-4
"""p-values below this reject."""

PLACES = 20
OPEN_BELOW = 0.9
"""The target leaves a choice when its most likely token has less than this."""
_LEAST_VISITS = 40
_LEAST_EXPECTED = 5.0
_EDGE = 1e-4
"""Contexts where a token's mass before it is this close to top-p are left out: rounding decides
whether the token is in."""

Counts = npt.NDArray[np.float64]


@dataclass
class Evidence:
    """Counts over all prompts; ``p_values`` judges them."""

    sampling: Sampling
    tokens: int = 0
    places: Counts = field(default_factory=lambda: np.zeros(PLACES))
    open_places: Counts = field(default_factory=lambda: np.zeros(PLACES))
    leanings: Counts = field(default_factory=lambda: np.zeros(PLACES))
    statistic: float = 0.0
    freedom: int = 0
    contexts: int = 0

    def p_values(self) -> dict[str, float]:
        """By view."""
        return {
            "places": _uniform_p(self.places),
            "open places": _uniform_p(self.open_places),
            "leanings": _uniform_p(self.leanings),
            "contexts": float(chi2.sf(self.statistic, self.freedom)),
        }

    def add(self, pair: Pair, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Answers of equal length to one prompt.

        Their first tokens only serve as context: the prefill samples them, without speculation.
        """
        tokens_NS = torch.tensor([list(answer) for answer in answers])
        start = torch.tensor(list(prompt)).expand(len(tokens_NS), -1)
        whole = torch.cat([start, tokens_NS], dim=1)
        places_S = torch.arange(len(prompt) - 1, whole.shape[1] - 1)
        with torch.no_grad():
            hidden, captured = pair.target.prefill(tokens_BS=whole)
            logits_NSV = pair.target.logits(hidden[:, places_S])
        law_NSV = probabilities(logits=logits_NSV, sampling=self.sampling).double()
        use_NS = self._clear_of_the_edge(logits_NSV)
        use_NS[:, 0] = False
        own_NS = law_NSV.gather(-1, tokens_NS[..., None]).squeeze(-1)
        never = (own_NS == 0) & use_NS
        assert not never.any(), f"{int(never.sum())} tokens came out that the target never samples"
        self.tokens += int(use_NS.sum())
        open_NS = use_NS & (law_NSV.max(-1).values < OPEN_BELOW)
        drafted_MV = _drafted(pair, whole, captured, places_S, open_NS)
        draft_MV = probabilities(logits=drafted_MV, sampling=self.sampling).double()
        law_MV = law_NSV[open_NS]
        self.places += self._places(law_NSV[use_NS], law_NSV[use_NS], tokens_NS[use_NS])
        self.open_places += self._places(law_MV, law_MV, tokens_NS[open_NS])
        leaning_MV = torch.where(law_MV > 0, draft_MV / law_MV, -1.0)
        self.leanings += self._places(law_MV, leaning_MV, tokens_NS[open_NS])
        self._add_contexts(law_NSV, tokens_NS, use_NS)

    def _clear_of_the_edge(self, logits_NSV: torch.Tensor) -> torch.Tensor:
        top_p = self.sampling.top_p
        if top_p >= 1:
            return torch.ones(logits_NSV.shape[:2], dtype=torch.bool)
        whole = Sampling(temperature=self.sampling.temperature)
        ordered = probabilities(logits=logits_NSV, sampling=whole).sort(-1, descending=True).values
        before = ordered.cumsum(-1) - ordered
        return ((before - top_p).abs() > _EDGE).all(-1)

    def _places(
        self, law_MV: torch.Tensor, order_MV: torch.Tensor, tokens_M: torch.Tensor
    ) -> Counts:
        """Histogram of the mass before each token, tokens standing from the largest ``order``."""
        counts = np.zeros(PLACES)
        rng = torch.Generator().manual_seed(self.tokens)
        numbers = torch.arange(law_MV.shape[-1])
        for rows in torch.arange(len(law_MV)).split(4096):  # type: ignore[no-untyped-call]
            law, order, tokens = law_MV[rows], order_MV[rows], tokens_M[rows, None]
            mine = order.gather(-1, tokens)
            earlier = (order > mine) | ((order == mine) & (numbers < tokens))
            draw = torch.rand(tokens.shape, generator=rng, dtype=torch.float64)
            place = (law * earlier).sum(-1, keepdim=True) + law.gather(-1, tokens) * draw
            bins = (place * PLACES).long().clamp(max=PLACES - 1)[:, 0].numpy()
            counts += np.bincount(bins, minlength=PLACES)
        return counts

    def _add_contexts(
        self, law_NSV: torch.Tensor, tokens_NS: torch.Tensor, use_NS: torch.Tensor
    ) -> None:
        for column in range(1, tokens_NS.shape[1]):
            before, which = torch.unique(tokens_NS[:, :column], dim=0, return_inverse=True)
            for group in range(len(before)):
                members = torch.nonzero((which == group) & use_NS[:, column])[:, 0]
                if len(members) < _LEAST_VISITS:
                    continue
                law = law_NSV[members[0], column].numpy()
                drawn = np.bincount(tokens_NS[members, column].numpy(), minlength=len(law))
                statistic, freedom = _pearson(drawn, law * len(members))
                self.statistic += statistic
                self.freedom += freedom
                self.contexts += freedom > 0


@torch.no_grad()
def _drafted(
    pair: Pair,
    whole: torch.Tensor,
    captured: torch.Tensor,
    places_S: torch.Tensor,
    wanted_NS: torch.Tensor,
) -> torch.Tensor:
    """[M, V] what the drafter would draft first at the wanted places, row by row."""
    # Every row drafts at as many places as the row that wants most, its wanted ones first.
    most = int(wanted_NS.sum(1).max())
    order_NA = wanted_NS.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    index_NA = places_S[order_NA]
    anchors_NA = whole.gather(1, index_NA)
    hidden_NAKD = pair.drafter.hidden(
        context_BSD=pair.drafter.context(captured_BSC=captured),
        anchor_tokens_BA=anchors_NA,
        anchor_index_BA=index_NA,
    )
    wanted_NA = wanted_NS.gather(1, order_NA)
    drafted_MV, _ = pair.drafter.logits(
        hidden_NKD=hidden_NAKD[wanted_NA][:, :1], previous_NK=anchors_NA[wanted_NA][:, None]
    )
    return drafted_MV[:, 0]


def _pearson(observed: npt.NDArray[np.int64], expected: Counts) -> tuple[float, int]:
    """(statistic, degrees of freedom); cells that expect little are taken together."""
    order = np.argsort(-expected, kind="stable")
    seen, wanted = observed[order].astype(np.float64), expected[order]
    large = int(np.searchsorted(-wanted, -_LEAST_EXPECTED, side="right"))
    seen = np.append(seen[:large], seen[large:].sum())
    wanted = np.append(wanted[:large], wanted[large:].sum())
    if len(wanted) > 1 and wanted[-1] < _LEAST_EXPECTED:
        seen[-2] += seen[-1]
        wanted[-2] += wanted[-1]
        seen, wanted = seen[:-1], wanted[:-1]
    return float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1


def _uniform_p(counts: Counts) -> float:
    expected = counts.sum() / PLACES
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), PLACES - 1))
