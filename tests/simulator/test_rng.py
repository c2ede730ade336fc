"""The keyed random numbers: uniform, normal, well mixed, and functions of their key alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from simulator.rng import NORMAL_BITS, mix64, normal, normal_table, round_key, uniform, word

SIGNED = st.integers(-(2**63), 2**63 - 1)


@njit
def words_of(requests: int, steps: int, streams: int, seed: int) -> npt.NDArray[np.uint64]:
    out = np.empty((requests, steps, streams), np.uint64)
    for r in range(requests):
        for s in range(steps):
            key = round_key(seed, r, s)
            for stream in range(streams):
                out[r, s, stream] = word(key, stream)
    return out


def bits_of(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    return np.unpackbits(words.reshape(-1, 1).view(np.uint8), axis=1)


@pytest.mark.golden
def test_the_finaliser_is_splitmix64() -> None:
    """The first three outputs of SplitMix64 seeded with 1234567, as its authors' code prints."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    key = np.uint64(1234567)
    assert [int(word(key, stream)) for stream in range(3)] == published


@pytest.mark.law
@given(x=SIGNED, bit=st.integers(0, 63))
def test_the_finaliser_maps_two_words_to_two_words(x: int, bit: int) -> None:
    one = np.uint64(x % 2**64)
    other = one ^ np.uint64(1 << bit)
    assert mix64(one) != mix64(other)


@pytest.mark.law
@given(seed=SIGNED, request=SIGNED, step=SIGNED, other=SIGNED)
def test_each_coordinate_alone_changes_the_key(
    seed: int, request: int, step: int, other: int
) -> None:
    key = round_key(seed, request, step)
    assert key == round_key(seed, request, step)
    assert (key == round_key(other, request, step)) == (other == seed)
    assert (key == round_key(seed, other, step)) == (other == request)
    assert (key == round_key(seed, request, other)) == (other == step)


@pytest.mark.law
def test_every_bit_of_a_word_is_a_fair_coin_and_its_neighbours_are_independent() -> None:
    words = words_of(200, 50, 8, 1)
    bits = bits_of(words).astype(np.float64)
    noise = 5.0 / np.sqrt(len(bits))
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.5 * noise
    correlation = np.corrcoef(bits.T) - np.eye(64)
    assert np.abs(correlation).max() < 1.2 * noise
    for axis in range(3):
        ahead = np.moveaxis(words, axis, 0)
        flips = bits_of(np.ascontiguousarray(ahead[1:] ^ ahead[:-1])).mean()
        assert abs(flips - 0.5) < 0.002


@pytest.mark.law
def test_uniforms_fill_the_unit_interval_evenly() -> None:
    words = words_of(400, 50, 5, 2).ravel()
    draws = np.array([uniform(w) for w in words])
    assert draws.min() > 0.0
    assert draws.max() < 1.0
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom, six sigma upwards


@pytest.mark.example
def test_uniforms_stay_inside_the_interval_at_its_ends() -> None:
    assert uniform(np.uint64(0)) == 2.0**-33
    assert uniform(np.uint64(2**64 - 1)) == 1.0 - 2.0**-33


@pytest.mark.law
def test_the_normal_table_has_mean_zero_variance_one_and_the_normals_shape() -> None:
    table = normal_table()
    assert len(table) == 1 << NORMAL_BITS
    assert np.all(np.diff(table) > 0)
    assert np.array_equal(table, -table[::-1])
    assert abs(table.mean()) < 1e-15
    assert (table**2).mean() == pytest.approx(1.0, abs=1e-12)
    assert (table**4).mean() == pytest.approx(3.0, abs=0.03)
    assert (table < -1.959964).mean() == pytest.approx(0.025, abs=3e-4)


@pytest.mark.law
def test_the_two_normals_and_the_uniform_of_a_word_are_independent() -> None:
    table = normal_table()
    words = words_of(400, 50, 5, 3).ravel()
    first = np.array([normal(table, w) for w in words])
    second = np.array([normal(table, w >> np.uint64(NORMAL_BITS)) for w in words])
    third = np.array([uniform(w) for w in words])
    correlation = np.corrcoef([first, second, third]) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(words))
    assert abs(first.mean()) < 5 / np.sqrt(len(words))
    assert abs(first.std() - 1.0) < 4 / np.sqrt(len(words))
