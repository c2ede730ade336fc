"""Bytes counted load by load and store by store, against ``benchmarks.compiled.traffic``.

Collected by no name: ``test_triton`` runs this file in a process of its own, under Triton's
interpreter. Shapes are small, the arithmetic is the one that is told of full-sized ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from benchmarks.compiled import traffic
from benchmarks.compiled.launches import KERNELS, Launch, Shape, caught, decode_round


class Counter:
    """What the interpreter loads and stores, masked places left out."""

    def __init__(self) -> None:
        self.asked = 0
        self.places: dict[str, set[int]] = {"load": set(), "store": set()}
        self.elements: dict[int, int] = {}

    def add(self, what: str, places: Any, mask: Any, element: int) -> None:
        """Some places [any shape] of ``element`` bytes."""
        here = np.broadcast_to(places, np.shape(mask))[np.asarray(mask, dtype=bool)].ravel()
        self.asked += element * here.size
        self.places[what].update(here.tolist())
        self.elements.update(dict.fromkeys(here.tolist(), element))

    @property
    def distinct(self) -> int:
        """Each byte once for being read and once for being written."""
        return sum(self.elements[place] for found in self.places.values() for place in found)


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """While the block runs, what kernels load and store is counted."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def element(pointers: Any) -> int:
        return int(pointers.get_element_ty().primitive_bitwidth) // 8

    def loaded(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        counter.add("load", pointers.data, mask.data, element(pointers))
        return load(self, pointers, mask, *others)

    def stored(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        counter.add("store", pointers.data, mask.data, element(pointers))
        return store(self, pointers, value, mask, *others)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", loaded),
        mock.patch.object(InterpreterBuilder, "create_masked_store", stored),
    ):
        yield


def counted(shape: Shape) -> list[tuple[Launch, Counter]]:
    """Every launch of one slot and of the rest of a round, beside what it loaded and stored."""
    counters: list[Counter] = []
    with caught() as found:
        for kernel in KERNELS:
            # Inside what ``caught`` put there, so that each launch has a counter of its own.
            inner = kernel.run

            def run(*args: Any, inner: Any = inner, **given: Any) -> None:
                counters.append(Counter())
                with counting(counters[-1]):
                    inner(*args, **given)

            kernel.run = run
        decode_round(shape, slots=1)
    return list(zip(found, counters, strict=True))


@pytest.mark.law
@pytest.mark.parametrize(
    "shape",
    [
        Shape(requests=1, vocabulary=8192, rank=64, device="cpu"),
        Shape(requests=19, gamma=5, vocabulary=1024, rank=40, device="cpu"),
        Shape(requests=70, gamma=2, vocabulary=256, rank=16, device="cpu"),
        Shape(requests=17, gamma=3, vocabulary=512, rank=16, head=torch.float32, device="cpu"),
        Shape(requests=3, gamma=1, vocabulary=4096, rank=0, device="cpu"),
    ],
)
def test_the_arithmetic_is_what_the_interpreter_counts(shape: Shape) -> None:
    """Law: no load or store is missing from the table, and none is in it twice."""
    launches = counted(shape)
    assert {launch.kernel for launch, _ in launches} == set(traffic.COUNTED)
    for launch, counter in launches:
        expected = traffic.of(launch)
        assert (launch.kernel, counter.asked) == (launch.kernel, expected.asked)
        assert (launch.kernel, counter.distinct) == (launch.kernel, expected.distinct)
        assert expected.distinct <= expected.asked
