"""What the serving tests share: the trained pair, a warm process, prompts and their plain answers.

Tests that need SGLang skip themselves where it is not installed, so that the rest of this folder
runs anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from servers import Nursery
from serving_scenes import Greedy, Pair, greedy_prompts, plain_answers

CACHE_VARIABLE = "SGLANG_DSPARK_CACHE"
"""Folder of the trained pair; without it the demo's own cache, so that either run finds it."""


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The laptop run's target and drafter on templated text, made where they are missing."""
    pytest.importorskip("sglang")
    from sglang_dspark.draft.demo import default_cache, trained_pair
    from sglang_dspark.draft.demo_recipe import laptop

    cache = os.environ.get(CACHE_VARIABLE) or default_cache()
    target, drafter = trained_pair(laptop(), cache, corpus="templated")
    return Pair(target_folder=target, drafter_folder=drafter)


@pytest.fixture(scope="session")
def nursery(pair: Pair) -> Iterator[Nursery]:
    """One warm process for the whole session."""
    # ``pair`` first: training beside a warm process would only cost memory.
    with Nursery() as warm:
        yield warm


@pytest.fixture(scope="session")
def greedy(pair: Pair, nursery: Nursery) -> Greedy:
    """200 prompts with what a server without speculation answers greedily."""
    return plain_answers(pair, nursery, greedy_prompts(pair, count=215), keep=200, new_tokens=64)
