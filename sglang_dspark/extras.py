"""Which package comes with which extra: asked of the installed distribution, whose list is
``pyproject.toml``'s. Knows no command.
"""

from __future__ import annotations

import importlib.util
import re

DISTRIBUTION = "sglang-dspark"
_REQUIREMENT = re.compile(r"([\w.-]+)(?:.*\bextra\s*==\s*[\"']([\w-]+)[\"'])?")


def extras() -> dict[str, str]:
    """By the name that is imported: the extra that brings a package, empty for what always comes.

    Empty too where the project runs without having been installed.
    """
    from importlib import metadata  # slow to load, and asked only when something is missing

    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found = (_REQUIREMENT.match(line) for line in requirements)
    return {match[1].replace("-", "_").lower(): match[2] or "" for match in found if match}


def not_installed(error: ModuleNotFoundError) -> str:
    """The sentence for a package that a command needs; empty when it is not one of ours to name."""
    package = (error.name or "").partition(".")[0]
    known = extras()
    if package not in known or importlib.util.find_spec(package) is not None:
        return ""
    extra = known[package] and f"[{known[package]}]"
    return (
        f"the package {package} is not installed; pip install '{DISTRIBUTION}{extra}' "
        f"(in a checkout: pip install -e '.{extra}')"
    )
