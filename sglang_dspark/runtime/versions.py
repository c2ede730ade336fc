"""Which lane serves DSPARK on the installed SGLang.

Owns the worker's one version and the sentence for those before it; whether a later one can be
steered is said by its hook targets. Knows nothing of hooks.
"""

from __future__ import annotations

from typing import Literal

from packaging.version import InvalidVersion, Version

Lane = Literal["worker", "steer"]

WORKER_VERSION = "0.5.15.post1"
"""The last release without a DSPARK of its own, and the only one the worker is verified on."""
FIRST_BUILT_IN = "0.5.16"
"""The first release that reserves the name for its own."""


def lane(version: str, *, built_in: bool) -> Lane:
    """``worker``: this project's own DSPARK; ``steer``: SGLang's, under this project's policy.

    ``built_in`` says whether SGLang itself knows the name DSPARK. ``ValueError`` for a version
    that neither lane was made for.
    """
    try:
        installed = Version(version)
    except InvalidVersion:
        raise ValueError(f"SGLang's version {version!r} is no version number; {_REMEDY}") from None
    if installed.public == WORKER_VERSION and not built_in:
        return "worker"
    if built_in or installed >= Version(FIRST_BUILT_IN):
        return "steer"
    raise ValueError(
        f"SGLang {version} is not {WORKER_VERSION}, which DSPARK is made for; {_REMEDY}"
    )


_REMEDY = f"install sglang=={WORKER_VERSION}"
