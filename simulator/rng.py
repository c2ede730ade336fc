"""Keyed random numbers: a pure function of (seed, request, step, stream), never a moving state.

Owns the hash and how its 64 bits become uniforms and normals. Knows nothing of what is drawn.
Two policies that reach round ``step`` of ``request`` under one ``seed`` see the same luck there,
in whatever order and on whatever thread they ask (common random numbers).

Law: ``round_key`` is a chain of three SplitMix64 finalisers (Steele, Lea and Flood 2014, the
constants of Stafford's mix 13), one per coordinate, so it is a bijection of each coordinate while
the other two are held; ``word(key, stream)`` is output ``stream`` of a SplitMix64 generator that
starts at the key. Any slice of a word's bits may be used; slices of one word are independent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.compiled import compiled

NORMAL_BITS = 12
"""Bits of a word that index the normal table: 4,096 values, 32 KiB, fits in a first-level cache."""

_NORMAL_MASK = np.uint64((1 << NORMAL_BITS) - 1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd, 2**64 / golden ratio: SplitMix64's increment
_STEP_ODD = np.uint64(0xD1342543DE82EF95)  # odd: spreads the step over the word before mixing
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30 = np.uint64(30)
_SHIFT_27 = np.uint64(27)
_SHIFT_31 = np.uint64(31)
_SHIFT_32 = np.uint64(32)
_ONE = np.uint64(1)
_HALF_UNIT_32 = 2.0**-33
_UNIT_32 = 2.0**-32


@compiled
def mix64(x: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: a bijection of 64-bit words that flips about half of all bits."""
    # Every operand stays uint64: numba turns int64 with uint64 into float64.
    x = (x ^ (x >> _SHIFT_30)) * _MIX_1
    x = (x ^ (x >> _SHIFT_27)) * _MIX_2
    return x ^ (x >> _SHIFT_31)


@compiled
def round_key(seed: int, request: int, step: int) -> np.uint64:
    """The key of one round of one request; any 64-bit integers, negative ones included."""
    key = mix64(np.uint64(seed) + _GOLDEN)
    key = mix64(key + np.uint64(request) * _GOLDEN)
    return mix64(key + np.uint64(step) * _STEP_ODD)


@compiled
def word(key: np.uint64, stream: int) -> np.uint64:
    """The 64 random bits of a stream (0, 1, 2, ...) under a key."""
    return mix64(key + (np.uint64(stream) + _ONE) * _GOLDEN)


@compiled
def uniform(bits: np.uint64) -> float:
    """The upper 32 bits of a word as a uniform inside (0, 1), never 0 or 1."""
    # Through int64: a signed conversion is one instruction, an unsigned one is several.
    return np.int64(bits >> _SHIFT_32) * _UNIT_32 + _HALF_UNIT_32


@compiled
def normal(table: npt.NDArray[np.float64], bits: np.uint64) -> float:
    """The lowest ``NORMAL_BITS`` bits of a word as a standard normal; shift the word for more."""
    return table[bits & _NORMAL_MASK]


def normal_table() -> npt.NDArray[np.float64]:
    """The mid-quantiles of N(0, 1) over 2**NORMAL_BITS equal cells: mean 0 and variance 1 exactly.

    Drawn values reach +-3.66; what a simulation needs from beyond has probability 0.0002.
    """
    from scipy.special import ndtri  # slow to import, and most that draw have the table already

    cells = 1 << NORMAL_BITS
    half = ndtri((np.arange(cells // 2) + 0.5) / cells)
    half /= np.sqrt(np.mean(half * half))
    table: npt.NDArray[np.float64] = np.concatenate((half, -half[::-1]))
    return table
