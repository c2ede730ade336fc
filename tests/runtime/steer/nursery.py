"""The warm process of ``tests.runtime.nursery`` for SGLang 0.5.21, with its DSPARK imported."""

from __future__ import annotations

import importlib

from tests.runtime import nursery

nursery._MODELS |= {"dspark", "dflash"}
_warm_up = nursery._warm_up


def _warm_up_steered() -> None:
    _warm_up()
    for name in (
        "sglang.srt.speculative.dspark_components.dspark_worker_v2",
        "sglang_dspark.runtime.steer.hooks",
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    nursery._warm_up = _warm_up_steered
    nursery.main()
