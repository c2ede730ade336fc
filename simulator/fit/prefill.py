"""What a prefill costs, from the time that prompts took between two decode steps.

Law fitted, seconds of everything that one gap between decode steps held:
    steps (base + host) + token (new tokens) + pair (attended pairs)
where new tokens are those that the prefix cache did not spare, and a pair is a new token with one
before it. Gaps vary by pauses of the machine as steps do, hence the same loss as theirs.

Every price comes with the interval in which resampled gaps put it, and what the gaps cannot tell is
said in a sentence. Knows no file, no log and no decode step.

Shapes: G gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.fit import WINSOR, mean_rises
from sglang_dspark.core.costs.schema import PrefillCost

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_GAPS = 30
"""Gaps that prices are fitted from at least."""
_RESAMPLES = 100
_MOST_TOKENS_OFF = 0.1
"""Half-width of the token price's interval, as a share of it, beyond which it is spoken of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaps:
    """Times between two decode steps in which prompts were prefilled, and nothing else ran."""

    seconds: Floats
    """[G] without the loop's own time."""
    tokens: Ints
    """[G] new tokens."""
    pairs: Floats
    """[G] attended pairs: new * (cached + new / 2)."""
    steps: Ints
    """[G] prefill steps."""
    cached_unknown: int
    """Gaps in which nobody says how many prompt tokens were cached."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """A fitted coefficient and the 95 % interval of it."""

    seconds: float
    low: float
    high: float

    @property
    def off(self) -> float:
        """Half of the interval, as a share of the price; infinite for a price of nothing."""
        return 0.5 * (self.high - self.low) / self.seconds if self.seconds > 0 else np.inf


@dataclass(frozen=True, kw_only=True)
class PrefillFit:
    """The prices, how sure they are, and what the gaps cannot tell."""

    gaps: int
    base: Price
    token: Price
    pair: Price
    longest_tokens: int
    """New tokens of the largest gap."""
    not_identified: tuple[str, ...]

    def cost(self) -> PrefillCost:
        """The block of the file."""
        return PrefillCost(
            base_s=round(self.base.seconds, 9),
            token_s=max(round(self.token.seconds, 12), 1e-12),
            pair_s=round(self.pair.seconds, 15),
            origin="measured",
            note=f"{self.gaps} gaps; 95 %: base {_ms(self.base)} ms, token {_us(self.token)} us, "
            f"pair {_ns(self.pair)} ns",
        )


def _ms(price: Price) -> str:
    return f"{1e3 * price.low:.3g} to {1e3 * price.high:.3g}"


def _us(price: Price) -> str:
    return f"{1e6 * price.low:.3g} to {1e6 * price.high:.3g}"


def _ns(price: Price) -> str:
    return f"{1e9 * price.low:.3g} to {1e9 * price.high:.3g}"


def fit_prefill(gaps: Gaps, *, seed: int = 0) -> PrefillFit | None:
    """The prices of prefill steps; None below ``LEAST_GAPS`` gaps that took any time.

    Intervals are those of fits to resampled gaps.
    """
    keep = np.flatnonzero(gaps.seconds > 0)
    if keep.size < LEAST_GAPS:
        return None
    seconds = gaps.seconds[keep]
    columns = (gaps.steps[keep], gaps.tokens[keep], gaps.pairs[keep])
    design = np.stack(columns, axis=1).astype(np.float64)
    found = _mean_fit(design, seconds)
    rng = np.random.default_rng(seed)
    draws = [rng.integers(keep.size, size=keep.size) for _ in range(_RESAMPLES)]
    spread = np.array([_mean_fit(design[drawn], seconds[drawn]) for drawn in draws])
    low, high = np.percentile(spread, (2.5, 97.5), axis=0)
    base, token, pair = (
        Price(seconds=float(value), low=float(least), high=float(most))
        for value, least, most in zip(found, low, high, strict=True)
    )
    return PrefillFit(
        gaps=int(keep.size),
        base=base,
        token=token,
        pair=pair,
        longest_tokens=int(gaps.tokens[keep].max()),
        not_identified=tuple(_lost(gaps, design, base, token, pair)),
    )


def _mean_fit(design: Floats, seconds: Floats) -> Floats:
    """[3] coefficients of the mean: the loss weighs relative errors, the factor sets the sum."""
    found = mean_rises(design, seconds)
    fitted = np.maximum(design @ found, 1e-9)
    ratio = seconds / fitted
    kept = ratio <= np.percentile(ratio, WINSOR)
    return found * float(seconds[kept].sum() / fitted[kept].sum())


def _lost(gaps: Gaps, design: Floats, base: Price, token: Price, pair: Price) -> list[str]:
    """Sentences on what the gaps do not tell."""
    lost = []
    if gaps.cached_unknown:
        share = gaps.cached_unknown / len(gaps.seconds)
        lost.append(
            f"{share:.0%} of the gaps with prefills hold prompts of which nobody says how many "
            "tokens were cached; they count as prefilled in full, so that a token looks too cheap "
            "wherever the prefix cache helped: give --requests the trace that traces record "
            "--from makes, with its .measured.jsonl beside it"
        )
    tokens = design[:, 1]
    if tokens.max() < 2 * max(tokens.min(), 1.0):
        lost.append("all prompts were of about one length: the price of a token is a guess")
    elif token.off > _MOST_TOKENS_OFF:
        lost.append(
            f"a prompt token costs {_us(token)} us (95 %), and a prefill step {_ms(base)} ms "
            "without it: record longer, or prompts of more different lengths"
        )
    if pair.low <= 0.0:
        most = float(gaps.pairs.max())
        lost.append(
            "what attention adds to a prefill cannot be told from nothing: at most "
            f"{1e3 * pair.high * most:.2g} ms on the longest that was seen, of "
            f"{int(tokens.max())} new tokens; longer prompts are extrapolated"
        )
    return lost
