"""What the serving tests share: the trained pair, a warm process, prompts and their plain answers.

Nothing here is imported before a test asks for it: the folder's other tests need neither SGLang nor
a trained pair.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.runtime.servers import Nursery
    from tests.runtime.serving_scenes import Greedy, Pair

# Before whichever test module imports SGLang first: it looks once.
os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

CACHE_VARIABLE = "SGLANG_DSPARK_CACHE"
"""Folder of the trained pair; without it the demo's own cache, so that either run finds it."""


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The laptop run's target and drafter on templated text, made where they are missing."""
    pytest.importorskip("sglang")
    from sglang_dspark.draft.demo.command import default_cache, trained_pair
    from sglang_dspark.draft.demo.recipe import laptop
    from tests.runtime.serving_scenes import Pair

    cache = os.environ.get(CACHE_VARIABLE) or default_cache()
    target, drafter = trained_pair(laptop(), cache, corpus="templated")
    return Pair(target_folder=target, drafter_folder=drafter)


@pytest.fixture(scope="session")
def nursery(pair: Pair) -> Iterator[Nursery]:
    """One warm process for the whole session."""
    from tests.runtime.servers import Nursery

    # ``pair`` first: training beside a warm process would only cost memory.
    with Nursery() as warm:
        yield warm


@pytest.fixture(scope="session")
def greedy(pair: Pair, nursery: Nursery) -> Greedy:
    """200 prompts with what a server without speculation answers greedily."""
    from tests.runtime.serving_scenes import greedy_prompts, plain_answers

    return plain_answers(pair, nursery, greedy_prompts(pair, count=215), keep=200, new_tokens=64)
