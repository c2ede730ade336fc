"""Serve for a long time what real traffic is made of, impatience and nonsense included:

    python -m benchmarks.serving_soak --minutes 10 -o soak.json -- --model-path TARGET \\
        --speculative-algorithm DSPARK --speculative-draft-model-path DRAFTER ...

Everything behind ``--`` goes to ``python -m sglang.launch_server``. Clients send requests of random
lengths and sampling settings, half of them streaming, walk away from a tenth, and send malformed or
unsupported ones in between. The report tells crashes (of the server, or a 5xx for a good request),
leaks (requests or KV tokens still held once all is quiet, processes left behind) and the resident
memory of every process over time. Exit status 1 on any crash or leak, or when memory grew. Wrongly
typed fields get a 500 from SGLang's own parsing, which is only counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.provenance import provenance
from benchmarks.servers import free_port, last_line, wait_healthy
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import write_json

READY_S = 600.0
QUIET_S = 60.0
SAMPLE_S = 2.0
WARM_SHARE = 0.3
"""Memory is compared from here on: caches and allocators fill up first."""
GROWTH_MIB = 32.0
"""By how much a process may grow between the two halves of what follows."""

Body = dict[str, Any]


@dataclass(kw_only=True)
class Tally:
    """What came of everything sent."""

    answers: Counter[str] = field(default_factory=Counter)
    """By kind of request and HTTP status, or how the connection ended."""
    tokens: int = 0
    crashes: list[str] = field(default_factory=list)
    memory_mib: list[dict[str, float]] = field(default_factory=list)
    """At each sample: seconds, and MiB by process."""


class Traffic:
    """Draws requests; the same seed draws the same ones for one client."""

    def __init__(self, *, vocabulary: int, context: int, seed: int, strange_ids: bool) -> None:
        self.vocabulary, self.context, self.strange_ids = vocabulary, context, strange_ids
        self.rng = random.Random(seed)
        self.beginnings = [self._tokens(self.rng.randint(4, 64)) for _ in range(8)]

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3, self.vocabulary) for _ in range(count)]

    def prompt(self) -> list[int]:
        """A shared beginning and a tail of its own."""
        longest = max(self.context // 4, 8)
        tail = self._tokens(int(longest ** self.rng.random()))
        return [*self.rng.choice(self.beginnings), *tail]

    def learn(self, tokens: list[int]) -> None:
        """What the model said is, unlike random tokens, text that a drafter is good at."""
        if tokens:
            self.beginnings[self.rng.randrange(len(self.beginnings))] = tokens[:64]

    def sampling(self) -> Body:
        """Greedy or sampled, filtered or penalised, of any length."""
        rng = self.rng
        longest = max(self.context // 4, 8)
        chosen: Body = {
            "max_new_tokens": int(longest ** rng.random()) + 1,
            "ignore_eos": rng.random() < 0.7,
            "temperature": rng.choice([0, 0, 0.7, 1.0, 1.5]),
        }
        if rng.random() < 0.3:
            chosen["top_p"] = rng.choice([0.5, 0.9])
        if rng.random() < 0.2:
            chosen["top_k"] = rng.choice([1, 5, 50])
        if rng.random() < 0.2:
            chosen["min_p"] = 0.05
        if rng.random() < 0.1:
            chosen["presence_penalty"] = 0.5
        if rng.random() < 0.1:
            chosen["logit_bias"] = {str(rng.randrange(self.vocabulary)): 2.0}
        return chosen

    def good(self) -> Body:
        """A request that deserves an answer."""
        body: Body = {"input_ids": self.prompt(), "sampling_params": self.sampling()}
        if self.rng.random() < 0.1:
            body["return_logprob"] = True
        return body

    def bad(self) -> tuple[str, bytes]:
        """(kind, raw body) of one that must be refused and must hurt nobody."""
        prompt = self.prompt()
        sampling: dict[str, Body] = {
            "negative max_new_tokens": {"max_new_tokens": -5},
            "NaN temperature": {"temperature": math.nan, "max_new_tokens": 8},
            "negative temperature": {"temperature": -1, "max_new_tokens": 8},
            "text temperature": {"temperature": "hot", "max_new_tokens": 8},
            "top_p of 2": {"top_p": 2, "max_new_tokens": 8},
            "top_k of 0": {"top_k": 0, "max_new_tokens": 8},
            "endless answer": {"max_new_tokens": 10**9},
            "unknown parameter": {"creativity": 11},
        }
        others: dict[str, Body] = {
            "no prompt": {"sampling_params": {"max_new_tokens": 8}},
            "empty prompt": {"input_ids": []},
            "too long a prompt": {"input_ids": prompt * self.context},
            "prompt of text ids": {"input_ids": ["a", "b"]},
            "two prompts, one setting": {
                "input_ids": [prompt, prompt],
                "sampling_params": [{"max_new_tokens": 4}],
            },
            "hidden states": {"input_ids": prompt, "return_hidden_states": True},
            "custom logit processor": {
                "input_ids": prompt,
                "custom_logit_processor": "{}",
            },
            "unknown LoRA": {"input_ids": prompt, "lora_path": "nobody"},
            "image": {"text": "look", "image_data": "nowhere.png"},
        }
        if self.strange_ids:
            others["token beyond the vocabulary"] = {"input_ids": [*prompt, self.vocabulary]}
            others["negative token"] = {"input_ids": [*prompt, -1]}
        kind = self.rng.choice(["bad JSON", "JSON list", *sampling, *others])
        if kind == "bad JSON":
            return kind, b'{"input_ids": [1, 2,'
        if kind == "JSON list":
            return kind, b"[1, 2, 3]"
        body = others.get(kind) or {"input_ids": prompt, "sampling_params": sampling[kind]}
        return kind, json.dumps(body).encode()


async def send(
    session: aiohttp.ClientSession, url: str, kind: str, data: bytes, tally: Tally
) -> list[int]:
    """One request that is waited for; the tokens of its answer."""
    headers = {"Content-Type": "application/json"}
    async with session.post(f"{url}/generate", data=data, headers=headers) as answer:
        text = await answer.text()
        tally.answers[f"{kind}: {answer.status}"] += 1
        if kind in ("good", "aborted"):
            if answer.status >= 500:
                tally.crashes.append(f"{kind}: {answer.status} {text[:300]}")
            elif answer.status == 200:
                tokens: list[int] = json.loads(text)["output_ids"]
                tally.tokens += len(tokens)
                return tokens
    return []


async def stream(
    session: aiohttp.ClientSession, url: str, body: Body, tally: Tally, leave_after: int | None
) -> None:
    """One request that is read as it comes, perhaps not to its end."""
    kind = "stream" if leave_after is None else "stream, left"
    async with session.post(f"{url}/generate", json={**body, "stream": True}) as answer:
        tally.answers[f"{kind}: {answer.status}"] += 1
        if answer.status >= 500:
            tally.crashes.append(f"{kind}: {answer.status} {(await answer.text())[:300]}")
        events = 0
        async for line in answer.content:
            events += line.startswith(b"data:")
            if leave_after is not None and events > leave_after:
                answer.close()
                return
        tally.tokens += events


async def client(
    url: str, traffic: Traffic, tally: Tally, over: Callable[[], bool], number: int
) -> None:
    """Send one request after the other until time is up."""
    rng = traffic.rng
    timeout = aiohttp.ClientTimeout(total=180)
    # Keep-alive would race with the server's own closing of idle connections.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        sent = 0
        while not over():
            sent += 1
            roll = rng.random()
            try:
                if roll < 0.1:
                    await send(session, url, *traffic.bad(), tally)
                elif roll < 0.15:
                    rid = f"soak-{number}-{sent}"
                    data = json.dumps({**traffic.good(), "rid": rid}).encode()
                    task = asyncio.create_task(send(session, url, "aborted", data, tally))
                    await asyncio.sleep(rng.random())
                    async with session.post(f"{url}/abort_request", json={"rid": rid}) as answer:
                        await answer.read()
                    await task
                elif roll < 0.55:
                    leave = rng.randint(0, 20) if roll < 0.2 else None
                    await stream(session, url, traffic.good(), tally, leave)
                else:
                    data = json.dumps(traffic.good()).encode()
                    traffic.learn(await send(session, url, "good", data, tally))
            except (aiohttp.ClientError, TimeoutError) as error:
                tally.crashes.append(f"client {number}: {type(error).__name__}: {error}")
                await asyncio.sleep(1)


async def watch(root: psutil.Process, tally: Tally, over: Callable[[], bool]) -> None:
    """Sample the resident memory of every process."""
    start_s = time.monotonic()
    while not over():
        sample = {"seconds": round(time.monotonic() - start_s, 1)}
        try:
            for number, process in enumerate([root, *root.children(recursive=True)]):
                sample[f"{number} {process.name()}"] = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess as error:
            tally.crashes.append(f"a process of the server is gone: {error.pid}")
        tally.memory_mib.append({name: round(value, 1) for name, value in sample.items()})
        await asyncio.sleep(SAMPLE_S)


async def get_json(session: aiohttp.ClientSession, url: str) -> Any:
    """Body of a GET request."""
    async with session.get(url) as answer:
        answer.raise_for_status()
        return json.loads(await answer.text())


async def held(url: str) -> dict[str, int]:
    """Requests and KV tokens that the idle server holds with its prefix cache flushed."""
    deadline = time.monotonic() + QUIET_S
    async with aiohttp.ClientSession() as session:
        while True:
            load = (await get_json(session, f"{url}/get_load"))[0]
            if load["num_reqs"] == 0 or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)
        async with session.post(f"{url}/flush_cache") as answer:
            flushed = answer.status == 200
        load = (await get_json(session, f"{url}/get_load"))[0]
    used = load["num_tokens"] - load["num_pending_tokens"]
    return {"requests": load["num_reqs"], "kv_tokens": used, "cache_not_flushed": int(not flushed)}


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """MiB by which each process grew: medians of the two halves after warming up."""
    rest = samples[int(WARM_SHARE * len(samples)) :]
    half = len(rest) // 2
    found = {}
    for name in rest[-1] if half else ():
        if name != "seconds":
            early, late = (
                [one[name] for one in part if name in one] for part in (rest[:half], rest[half:])
            )
            if early and late:
                found[name] = round(float(np.median(late) - np.median(early)), 2)
    return found


async def soak(
    url: str,
    server: subprocess.Popen[bytes],
    *,
    seconds: float,
    concurrency: int,
    seed: int,
    strange_ids: bool,
) -> dict[str, Any]:
    """Everything between a healthy server and the report."""
    tally = Tally()
    start_s = time.monotonic()
    async with aiohttp.ClientSession() as session:
        info = await get_json(session, f"{url}/server_info")
        model = await get_json(session, f"{url}/model_info")
    config = json.loads((Path(model["model_path"]) / "config.json").read_text())
    vocabulary, context = config["vocab_size"], config["max_position_embeddings"]
    context = min(context, info["internal_states"][0]["memory_usage"]["token_capacity"])
    before = await held(url)

    def over() -> bool:
        return time.monotonic() - start_s > seconds or server.poll() is not None

    await asyncio.gather(
        watch(psutil.Process(server.pid), tally, over),
        *(
            client(
                url,
                Traffic(
                    vocabulary=vocabulary,
                    context=context,
                    seed=1000 * seed + number,
                    strange_ids=strange_ids,
                ),
                tally,
                over,
                number,
            )
            for number in range(concurrency)
        ),
    )
    if server.poll() is not None:
        tally.crashes.append(f"the server ended with {server.returncode}")
        after, block = before, None
    else:
        after = await held(url)
        async with aiohttp.ClientSession() as session:
            info = await get_json(session, f"{url}/server_info")
        block = info["internal_states"][0].get("dspark")
    return {
        "minutes": round((time.monotonic() - start_s) / 60, 2),
        "concurrency": concurrency,
        "answers": dict(sorted(tally.answers.items())),
        "tokens": tally.tokens,
        "crashes": tally.crashes,
        "held_before": before,
        "held_after": after,
        "growth_mib": growth(tally.memory_mib),
        "memory_mib": tally.memory_mib,
        "dspark": block,
    }


def verdict(report: dict[str, Any]) -> list[str]:
    """What is wrong, a sentence each."""
    wrong = [f"crash: {crash}" for crash in report["crashes"][:10]]
    for name, value in report["held_after"].items():
        if value > report["held_before"][name]:
            wrong.append(f"leak: {value} {name} held, {report['held_before'][name]} at the start")
    wrong += [f"leak: process {pid} outlives the server" for pid in report["left_processes"]]
    for name, mib in report["growth_mib"].items():
        if mib > GROWTH_MIB:
            wrong.append(f"memory: {name} grew by {mib:g} MiB, more than {GROWTH_MIB:g}")
    return wrong


def end(server: subprocess.Popen[bytes]) -> list[int]:
    """Stop the server as an operator does; process ids that stay."""
    if server.poll() is not None:
        return []
    family = psutil.Process(server.pid).children(recursive=True)
    server.terminate()
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        return [server.pid]
    _, alive = psutil.wait_procs(family, timeout=20)
    return [one.pid for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        prog="serving_soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--strange-ids",
        action="store_true",
        help="token ids outside the vocabulary too; SGLang 0.5.15.post1 itself dies of them",
    )
    parser.add_argument("-o", "--out", default="soak.json", help="report, JSON")
    parser.add_argument("--log", help="the server's log (default: a temporary file)")
    parser.add_argument("server", nargs="+", help="arguments of sglang.launch_server, after --")
    given = parser.parse_args(arguments)
    if given.minutes <= 0 or given.concurrency < 1:
        raise ValueError(
            f"--minutes {given.minutes:g} --concurrency {given.concurrency}: give positive numbers"
        )
    port = free_port()
    log = Path(given.log or tempfile.mkstemp(prefix="soak-", suffix=".log")[1])
    command = [sys.executable, "-m", "sglang.launch_server", *given.server]
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        if not wait_healthy(url, lambda: server.poll() is None, timeout_s=READY_S):
            raise ValueError(f"the server did not start: {last_line(log)}; its log is {log}")
        report = asyncio.run(
            soak(
                url,
                server,
                seconds=60 * given.minutes,
                concurrency=given.concurrency,
                seed=given.seed,
                strange_ids=given.strange_ids,
            )
        )
        report["left_processes"] = end(server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    command_line = f"python -m benchmarks.serving_soak --minutes {given.minutes:g}"
    report = provenance(command_line) | {
        "server": given.server,
        "verdict": verdict(report),
        **report,
    }
    write_json(given.out, report)
    summary = {key: value for key, value in report.items() if key not in ("memory_mib", "dspark")}
    print(json.dumps(summary, indent=1))
    print(f"wrote {given.out}; the server's log is {log}", file=sys.stderr)
    return 1 if report["verdict"] else 0


if __name__ == "__main__":
    sys.exit(run_command("serving_soak", main))
