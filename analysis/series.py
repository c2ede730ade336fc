"""Which lines a page has, what they are called and how they look.

A series is one policy of one set-up, over one load or a sweep of loads. Owns the names: the policy,
and, with several result folders, what differs between them. Knows nothing of axes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.replays import Replay, Row
from analysis.style import POLICY_LOOKS, SPARE_LOOKS, Look

MOST_SERIES = len(POLICY_LOOKS) + len(SPARE_LOOKS)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of the page."""

    label: str
    policy: str
    look: Look
    replays: tuple[Replay, ...]
    """Result folders with runs of it: one, or several that continue each other's sweep."""

    def rows(self) -> list[tuple[Replay, Row]]:
        """Its runs with the folder of each, by concurrency."""
        found = [(r, row) for r in self.replays for row in r.summary.policies]
        found = [(replay, row) for replay, row in found if row.policy == self.policy]
        return sorted(found, key=lambda pair: pair[1].concurrency or 0)

    def at(self, concurrency: int | None) -> Replay | None:
        """The folder that holds its run at one load."""
        for replay, row in self.rows():
            if row.concurrency == concurrency:
                return replay
        return None


def short_name(text: str) -> str:
    """A shipped name as it is; a file by its stem, so that pages do not depend on folders."""
    return Path(text).stem if text.endswith(".json") or "/" in text else text


def _traced(replay: Replay) -> str:
    return f"{replay.summary.trace} {replay.summary.trace_sha256[:8]}"


_DIFFERENCES: tuple[tuple[Callable[[Replay], str], Callable[[Replay], str]], ...] = (
    (lambda r: r.summary.acceptance, lambda r: short_name(r.summary.acceptance)),
    (lambda r: r.summary.cost_model, lambda r: short_name(r.summary.cost_model)),
    (_traced, _traced),
    (lambda r: str(r.summary.replicas), lambda r: f"{r.summary.replicas} replicas"),
    (lambda r: str(r.settings.rate), lambda r: f"rate ×{r.settings.rate:g}"),
    (lambda r: r.summary.slo, lambda r: f"SLO {r.summary.slo}"),
    (lambda r: str(r.summary.seed), lambda r: f"seed {r.summary.seed}"),
    (
        lambda r: json.dumps(r.settings.engine, sort_keys=True),
        lambda r: f"engine of {r.path.resolve().name}",
    ),
    (
        lambda r: r.settings.provenance.get("version", "?"),
        lambda r: f"version {r.settings.provenance.get('version', '?')}",
    ),
)
"""(what may differ between two folders, what the labels then say)."""


def _set_ups(replays: Sequence[Replay]) -> list[str]:
    """Per folder, the values that differ between the folders; empty where none does."""
    parts: list[list[str]] = [[] for _ in replays]
    for key_of, text_of in _DIFFERENCES:
        if len({key_of(replay) for replay in replays}) > 1:
            for part, replay in zip(parts, replays, strict=True):
                part.append(text_of(replay))
    names = [", ".join(part) for part in parts]
    runs: dict[tuple[str, str, int | None], Replay] = {}
    for name, replay in zip(names, replays, strict=True):
        for row in replay.summary.policies:
            other = runs.setdefault((name, row.policy, row.concurrency), replay)
            if other is not replay:
                return _named_by_folder(names, replays)
    return names


def _named_by_folder(names: Sequence[str], replays: Sequence[Replay]) -> list[str]:
    folders = [replay.path.resolve().name for replay in replays]
    for folder, replay in zip(folders, replays, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(
                f"{replay.path}: another folder named {folder!r} holds the same policies and "
                "loads; give each folder once, or rename one"
            )
    pairs = zip(names, folders, strict=True)
    return [f"{name}, {folder}" if name else folder for name, folder in pairs]


def make_series(replays: Sequence[Replay], policies: Sequence[str] = ()) -> list[Series]:
    """The page's lines in the order of the summaries; ``policies`` keeps only those.

    ``ValueError`` for a policy that no folder holds, for the same run twice, and for more lines
    than there are distinct looks.
    """
    known = list(dict.fromkeys(row.policy for r in replays for row in r.summary.policies))
    for policy in policies:
        if policy not in known:
            raise ValueError(f"--policy {policy}: no such policy; there are {', '.join(known)}")
    holders: dict[tuple[str, str], list[Replay]] = {}
    for set_up, replay in zip(_set_ups(replays), replays, strict=True):
        for policy in dict.fromkeys(row.policy for row in replay.summary.policies):
            if not policies or policy in policies:
                holders.setdefault((policy, set_up), []).append(replay)
    if len(holders) > MOST_SERIES:
        raise ValueError(
            f"{len(holders)} lines are more than the {MOST_SERIES} that a reader can tell apart; "
            "choose some with --policy"
        )
    looks = _looks([policy for policy, _ in holders])
    return [
        Series(
            label=f"{policy} ({set_up})" if set_up else policy,
            policy=policy,
            look=look,
            replays=tuple(folders),
        )
        for ((policy, set_up), folders), look in zip(holders.items(), looks, strict=True)
    ]


def _looks(policies: Sequence[str]) -> list[Look]:
    """A policy's own look for its first line, a spare one for every further line."""
    own = dict(POLICY_LOOKS)
    chosen = [own.pop(policy.partition(":")[0], None) for policy in policies]
    spare = iter([*SPARE_LOOKS, *own.values()])
    return [look or next(spare) for look in chosen]
