"""The empirical acceptance profile: recorded rounds of a live drafter, replayed as they were.

Owns the log's format and its checks. A log is a Parquet file with one row per verify round:
    request int, step int, domain string, logits list of K floats, accepted int
``logits`` are the raw confidence logits of all K positions, ``accepted`` the number of leading
draft tokens that the target would accept out of the **whole** block: rounds that a scheduler had
cut short say too little; ``simulator.fit.calibrate`` completes them, and says in two more columns
    position int, output_tokens int
where in the answer each round began and how long the answer was. Without them every round is taken
to have committed what was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sglang_dspark.files import os_problem
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

_COLUMNS = ("request", "step", "domain", "logits", "accepted")


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
    try:
        table = pq.read_table(path)
    except OSError as error:
        raise os_problem("read", path, error) from None
    except pa.ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a Parquet file ({first_line}); record it again") from None
    for column in _COLUMNS:
        if column not in table.column_names:
            raise ValueError(
                f"{path}: column {column!r} is missing; an acceptance log has the columns "
                f"{', '.join(_COLUMNS)}"
            )
    if table.num_rows == 0:
        raise ValueError(f"{path}: the log has no rounds; record some traffic first")
    request = _integers(path, table, "request")
    step = _integers(path, table, "step")
    accepted = _integers(path, table, "accepted")
    domain = _strings(path, table)
    logits = _logits(path, table)
    gamma = logits.shape[1]
    _refuse(
        path, "accepted", (accepted < 0) | (accepted > gamma), accepted, f"it must be 0..{gamma}"
    )
    _refuse(path, "step", step < 0, step, "it must be >= 0")

    names, codes = np.unique(domain, return_inverse=True)
    order = np.lexsort((step, request, codes))
    request, step, codes = request[order], step[order], codes[order]
    same = (request[1:] == request[:-1]) & (codes[1:] == codes[:-1])
    twice = same & (step[1:] == step[:-1])
    if twice.any():
        row = int(order[1:][twice][0])
        raise ValueError(
            f"{path}: column 'step', row {row}: request {table['request'][row]} has step "
            f"{table['step'][row]} twice; number the rounds of a request once each"
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
    if "output_tokens" in table.column_names:
        tokens = _integers(path, table, "output_tokens")
        _refuse(path, "output_tokens", tokens < 1, tokens, "it must be >= 1")
        first = np.repeat(tokens[order][starts], ends - starts)
        differs = np.empty(len(order), np.bool_)
        differs[order] = tokens[order] != first
        _refuse(path, "output_tokens", differs, tokens, "another row of the request differs")
        output_tokens = tokens[order][starts]
    else:
        output_tokens = np.add.reduceat(accepted[order] + 1, starts) + 1
    if "position" in table.column_names:
        given = _integers(path, table, "position")
        position = given[order]
        wrong = np.empty(len(order), np.bool_)
        rises = np.diff(position, prepend=-1) > 0
        wrong[order] = np.where(np.isin(np.arange(len(order)), starts), position < 0, ~rises)
        _refuse(path, "position", wrong, given, "it must be >= 0 and rise from round to round")
    else:
        before = np.cumsum(accepted[order] + 1) - accepted[order] - 1
        position = before - np.repeat(before[starts], ends - starts)
    return EmpiricalProfile(
        name=path.stem,
        gamma=gamma,
        domains=tuple(str(name) for name in names),
        logits=np.ascontiguousarray(logits[order]),
        accepted=np.ascontiguousarray(accepted[order]),
        first_round=np.append(starts, len(order)).astype(np.int64),
        first_request=np.searchsorted(codes[starts], np.arange(len(names) + 1)).astype(np.int64),
        output_tokens=output_tokens,
        position=position,
    )


def _refuse(path: Path, column: str, bad: Any, values: Any, rule: str) -> None:
    """Raise for the first bad row, rows counted from 0."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{path}: column {column!r}, row {row}: {values[row]} is wrong; {rule}")


def _refuse_nulls(path: Path, table: pa.Table, column: str) -> None:
    missing = pc.is_null(table[column]).to_numpy(zero_copy_only=False)
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise ValueError(f"{path}: column {column!r}, row {row}: no value; every row needs one")


def _integers(path: Path, table: pa.Table, column: str) -> IntArray:
    kind = table[column].type
    if not pa.types.is_integer(kind):
        raise ValueError(f"{path}: column {column!r} holds {kind}; it must hold integers")
    _refuse_nulls(path, table, column)
    values: IntArray = table[column].to_numpy().astype(np.int64)
    return values


def _strings(path: Path, table: pa.Table) -> Any:
    values = table["domain"]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise ValueError(f"{path}: column 'domain' holds {values.type}; it must hold strings")
    _refuse_nulls(path, table, "domain")
    return np.array(values.to_pylist())


def _logits(path: Path, table: pa.Table) -> FloatArray:
    kind = table["logits"].type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise ValueError(f"{path}: column 'logits' holds {kind}; it must hold lists of floats")
    _refuse_nulls(path, table, "logits")
    lengths = pc.list_value_length(table["logits"]).to_numpy()
    gamma = int(lengths[0])
    if not 1 <= gamma <= MAX_GAMMA:
        raise ValueError(
            f"{path}: column 'logits', row 0: {gamma} values; a block has 1..{MAX_GAMMA} positions"
        )
    _refuse(path, "logits", lengths != gamma, lengths, f"row 0 has {gamma} values, so must all")
    flat = pc.list_flatten(table["logits"]).to_numpy(zero_copy_only=False).astype(np.float64)
    logits: FloatArray = flat.reshape(-1, gamma)
    bad = ~np.isfinite(logits).all(axis=1)
    _refuse(path, "logits", bad, logits, "every logit must be a finite number")
    return logits
