"""The empirical acceptance profile: recorded rounds of a live drafter, replayed as they were.

Owns what a replay needs of the rounds of one request: a domain, steps that differ, positions that
rise, one length of the answer. Where the log says nothing of positions and lengths, every round is
taken to have committed what was accepted. The log itself is
``sglang_dspark.logs.acceptance_log``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sglang_dspark.logs.acceptance_log import read_rounds, refuse_row
from sglang_dspark.logs.rounds import Mask
from simulator.acceptance.profile import warn_unlisted
from simulator.acceptance.tables import (
    KIND_EMPIRICAL,
    MAX_GAMMA,
    AcceptanceTables,
    FloatArray,
    IntArray,
    sigmoid_table,
)
from simulator.rng import normal_table


@dataclass(frozen=True, kw_only=True, eq=False)
class EmpiricalProfile:
    """Recorded rounds grouped by recorded request, recorded requests grouped by domain."""

    name: str
    """The log's file name without its ending."""
    gamma: int
    """K: recorded positions per round."""
    domains: tuple[str, ...]
    """Domains of the log, sorted."""
    logits: FloatArray
    """[rounds, K] raw confidence logits."""
    accepted: IntArray
    """[rounds] accepted draft tokens, 0..K."""
    first_round: IntArray
    """[recorded requests + 1] where each recorded request's rounds begin."""
    first_request: IntArray
    """[domains + 1] where each domain's recorded requests begin."""
    output_tokens: IntArray
    """[recorded requests] how long each one's answer was."""
    position: IntArray
    """[rounds] output tokens before each round, the prefill's not counted."""

    def tables(self, domain_names: Sequence[str]) -> AcceptanceTables:
        """Dense tables aligned with a trace's domain names.

        Requests without a domain, or of one the log lacks, replay any recorded request; the latter
        are named in one warning.
        """
        unlisted = [name for name in domain_names if name not in self.domains]
        if unlisted:
            warn_unlisted(self.name, unlisted, "all its requests", list(self.domains))
        records = [self._by_length(name) for name in (*domain_names, None)]
        order = np.concatenate(records)
        rows = len(records)
        unused = np.zeros((rows, self.gamma))
        reached = (self.accepted >= self.gamma - 1).sum()
        return AcceptanceTables(
            kind=KIND_EMPIRICAL,
            gamma=self.gamma,
            mean_logit=unused,
            request_sd=np.zeros(rows),
            step_sd=np.zeros(rows),
            step_correlation=np.zeros(rows),
            token_sd=np.zeros(rows),
            confidence_bias=unused,
            confidence_scale=unused,
            confidence_noise=unused,
            normal=normal_table(),
            sigmoid=sigmoid_table(),
            log_logits=self.logits,
            log_accepted=self.accepted,
            log_first_round=self.first_round,
            log_request=order,
            log_tokens=self.output_tokens[order],
            log_position=self.position,
            log_first_request=np.cumsum([0, *map(len, records)], dtype=np.int64),
            log_last_position=float((self.accepted == self.gamma).sum() / max(reached, 1)),
        )

    def _by_length(self, domain: str | None) -> IntArray:
        """The domain's recorded requests, short answers first; all for a domain not recorded."""
        first, end = 0, len(self.output_tokens)
        if domain in self.domains:
            code = self.domains.index(domain)
            first, end = self.first_request[code : code + 2].tolist()
        return first + np.argsort(self.output_tokens[first:end], kind="stable")


def read_empirical_profile(path: Path) -> EmpiricalProfile:
    """The log in a Parquet file; ``ValueError`` names the file, the column, the row and the rule.

    Rows may come in any order: they are sorted by domain, request and step.
    """
    log = read_rounds(path)
    gamma = log.gamma
    if gamma > MAX_GAMMA:
        raise ValueError(
            f"{path}: column 'logits', row 0: {gamma} values; a block has 1..{MAX_GAMMA} positions"
        )
    names, codes = np.unique(log.domain, return_inverse=True)
    order = np.lexsort((log.step, log.request, codes))
    request, step, accepted = log.request[order], log.step[order], log.accepted[order]
    codes = codes[order]
    same = (request[1:] == request[:-1]) & (codes[1:] == codes[:-1])
    twice = same & (step[1:] == step[:-1])
    if twice.any():
        row = int(order[1:][twice][0])
        raise ValueError(
            f"{path}: column 'step', row {row}: request {log.request[row]} has step "
            f"{log.step[row]} twice; number the rounds of a request once each"
        )
    starts = np.flatnonzero(np.concatenate(([True], ~same)))
    owners = request[starts]
    if len(np.unique(owners)) != len(owners):
        values, counts = np.unique(owners, return_counts=True)
        torn = int(values[counts > 1][0])
        raise ValueError(
            f"{path}: column 'domain': request {torn} has rounds in more than one domain; give a "
            "request one domain"
        )
    ends = np.append(starts[1:], len(order))

    def of_request(values: IntArray) -> IntArray:
        """[rounds] each request's value in all its rounds."""
        return np.repeat(values, ends - starts)

    def refuse(column: str, wrong: Mask, values: IntArray, rule: str) -> None:
        as_recorded = np.empty(len(order), np.bool_)
        as_recorded[order] = wrong
        refuse_row(path, column, as_recorded, values, rule)

    if log.output_tokens is not None:
        tokens = log.output_tokens[order]
        output_tokens = tokens[starts]
        differs = tokens != of_request(output_tokens)
        refuse("output_tokens", differs, log.output_tokens, "another row of the request differs")
    else:
        output_tokens = np.add.reduceat(accepted + 1, starts) + 1
    if log.position is not None:
        position = log.position[order]
        stands = np.append(False, np.diff(position) <= 0)
        stands[starts] = False
        rule = "it must be >= 0 and rise from round to round"
        refuse("position", stands, log.position, rule)
    else:
        before = np.cumsum(accepted + 1) - accepted - 1
        position = before - of_request(before[starts])
    return EmpiricalProfile(
        name=path.stem,
        gamma=gamma,
        domains=tuple(str(name) for name in names),
        logits=np.ascontiguousarray(log.logits[order]),
        accepted=np.ascontiguousarray(accepted),
        first_round=np.append(starts, len(order)).astype(np.int64),
        first_request=np.searchsorted(codes[starts], np.arange(len(names) + 1)).astype(np.int64),
        output_tokens=output_tokens,
        position=position,
    )
