"""A load on a server over HTTP, with impatient clients, and what came of it.

Owns requests, streams and aborts, and the reading of a server's own accounts. Knows nothing of how
servers are started.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.waiting import HUNG_S

_ABORTED_WHILE_WAITING = "Abort in waiting queue"
"""A stream that was retracted and is given up while it waits ends with its last token alone."""

_TIMEOUT = aiohttp.ClientTimeout(total=300)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request."""

    prompt: Sequence[int]
    sampling: dict[str, Any]
    stream: bool = False
    abort_after: int | None = None
    """Walk away once so many tokens have arrived; a request that does not stream is given as many
    hundredths of a second."""
    hang_up: bool = False
    """How to walk away: close the connection, or tell the server by /abort_request."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other fields of the body."""


@dataclass(kw_only=True)
class Outcome:
    """What one request brought."""

    job: Job
    status: int = 0
    """Of HTTP; 0 when the connection was closed from this side first."""
    tokens: list[int] = field(default_factory=list)
    """As far as seen."""
    finish: str = ""
    """SGLang's finish reason: ``length``, ``stop``, ``abort``; empty after hanging up."""
    message: str = ""
    """Of a refusal."""
    meta: dict[str, Any] = field(default_factory=dict)
    end_s: float = 0.0
    """Seconds since the load began."""

    @property
    def whole(self) -> bool:
        """Whether it ran to its end."""
        return self.finish in ("length", "stop")


def _take(outcome: Outcome, answer: dict[str, Any]) -> None:
    if "meta_info" not in answer:
        outcome.message = json.dumps(answer)
        return
    outcome.meta = answer["meta_info"]
    reason = outcome.meta.get("finish_reason")
    if reason is not None:
        outcome.finish, outcome.message = reason["type"], str(reason.get("message", ""))
    if not (outcome.job.stream and outcome.message == _ABORTED_WHILE_WAITING):
        outcome.tokens = list(answer["output_ids"])


async def _abort(session: aiohttp.ClientSession, url: str, rid: str) -> None:
    async with session.post(f"{url}/abort_request", json={"rid": rid}) as answer:
        await answer.read()


async def _stream(session: aiohttp.ClientSession, url: str, rid: str, outcome: Outcome) -> None:
    """Read events until the end, or until it is time to go."""
    job, told = outcome.job, False
    async with session.post(f"{url}/generate", json=_body(job, rid)) as answer:
        outcome.status = answer.status
        if answer.status != 200:
            outcome.message = (await answer.read()).decode()
            return
        async for line in answer.content:
            if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                continue
            _take(outcome, json.loads(line[5:]))
            late = job.abort_after is not None and len(outcome.tokens) >= job.abort_after
            if late and not outcome.finish and not told:
                if job.hang_up:
                    answer.close()
                    return
                told = True
                await _abort(session, url, rid)


async def _whole(session: aiohttp.ClientSession, url: str, rid: str, outcome: Outcome) -> None:
    job = outcome.job

    async def ask() -> None:
        async with session.post(f"{url}/generate", json=_body(job, rid)) as answer:
            body = await answer.read()
            outcome.status = answer.status
            if answer.headers.get("Content-Type", "").startswith("application/json"):
                _take(outcome, json.loads(body))
            else:
                outcome.message = body.decode(errors="replace")

    if job.abort_after is None:
        await ask()
        return
    task = asyncio.create_task(ask())
    await asyncio.wait([task], timeout=0.01 * job.abort_after)
    if not task.done():
        if job.hang_up:
            task.cancel()
        else:
            await _abort(session, url, rid)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _body(job: Job, rid: str) -> dict[str, Any]:
    return {
        "input_ids": list(job.prompt),
        "sampling_params": job.sampling,
        "stream": job.stream,
        "rid": rid,
        **job.extra,
    }


async def _load(url: str, jobs: Sequence[Job], concurrency: int) -> list[Outcome]:
    outcomes = [Outcome(job=job) for job in jobs]
    waiting = iter(enumerate(outcomes))
    start_s = time.monotonic()
    tag = f"{time.time_ns():x}"

    async def client(session: aiohttp.ClientSession) -> None:
        for number, outcome in waiting:
            serve = _stream if outcome.job.stream else _whole
            await serve(session, url, f"{tag}-{number}", outcome)
            outcome.end_s = time.monotonic() - start_s

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(concurrency)))
    return outcomes


def serve(url: str, jobs: Sequence[Job], *, concurrency: int) -> list[Outcome]:
    """Send the jobs, ``concurrency`` at a time, each client one after the other."""
    return asyncio.run(_load(url, jobs, concurrency))


@dataclass(frozen=True, kw_only=True)
class Account:
    """A server's own word on what it holds."""

    requests: int
    """Running or waiting."""
    free_kv_tokens: int


async def _json(session: aiohttp.ClientSession, method: str, url: str) -> Any:
    async with session.request(method, url) as answer:
        body = await answer.text()
        if answer.status != 200:
            raise RuntimeError(f"{method} {url}: {answer.status} {body}")
        return json.loads(body)


async def _account(url: str, patience_s: float) -> Account:
    deadline = time.monotonic() + patience_s
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        while True:
            load = (await _json(session, "GET", f"{url}/get_load"))[0]
            if not load["num_reqs"] or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        # An overlapped step may still hold the last request's pages.
        while True:
            async with session.post(f"{url}/flush_cache") as answer:
                if answer.status == 200 or time.monotonic() > deadline:
                    break
            await asyncio.sleep(0.05)
        load = (await _json(session, "GET", f"{url}/get_load"))[0]
        info = await _json(session, "GET", f"{url}/server_info")
    used = load["num_tokens"] - load["num_pending_tokens"]
    capacity = info["internal_states"][0]["memory_usage"]["token_capacity"]
    return Account(requests=load["num_reqs"], free_kv_tokens=capacity - used)


def account(url: str, *, patience_s: float = HUNG_S) -> Account:
    """What the server holds once it is idle and its prefix cache is flushed."""
    return asyncio.run(_account(url, patience_s))


async def _get(url: str) -> bytes:
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT) as session,
        session.get(url) as answer,
    ):
        body = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"GET {url}: {answer.status} {body.decode(errors='replace')}")
        return body


def server_info(url: str) -> dict[str, Any]:
    """/server_info."""
    info: dict[str, Any] = json.loads(asyncio.run(_get(f"{url}/server_info")))
    return info


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def metrics(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """/metrics: name -> [(labels, value)]."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in asyncio.run(_get(f"{url}/metrics")).decode().splitlines():
        match = _SAMPLE.match(line)
        if match:
            name, labels, value = match.groups()
            found.setdefault(name, []).append((dict(_LABEL.findall(labels or "")), float(value)))
    return found


def total(found: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str) -> float:
    """Sum of a metric's samples with these labels; 0 when there is none."""
    return sum(
        value
        for given, value in found.get(name, [])
        if all(given.get(key) == wanted for key, wanted in labels.items())
    )
