"""Talks to a running server the way a measurement needs: hold a batch, let go of it, look inside.

Owns the HTTP of the profiler and of the GPU benchmarks. Random prompts that share no prefix, so
that nothing is served from the radix cache. Knows no lane and no statistics; imports no SGLang.
"""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FIRST_TOKEN, LAST_TOKEN = 16, 250
"""Prompts are drawn from these ids: every vocabulary has them, and few are special."""
_IDLE_S = 60.0
_PILOT_TOKENS = 12


class Unreachable(ValueError):
    """The server does not answer, or not as expected."""


class ServerClient:
    """One server. Every error of the connection is an ``Unreachable``, one sentence."""

    def __init__(self, url: str, *, seed: int = 0, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._random = random.Random(seed)

    def get(self, path: str) -> Any:
        """JSON of a GET request; None for an empty body."""
        return self._ask(urllib.request.Request(self.url + path), self.timeout_s)

    def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> Any:
        """JSON of a POST request."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return self._ask(request, timeout_s or self.timeout_s)

    def _ask(self, request: urllib.request.Request, timeout_s: float) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise Unreachable(
                f"{request.full_url}: the server answers {error.code} {said}; look at its log"
            ) from None
        except OSError as error:
            raise Unreachable(
                f"{request.full_url}: no answer ({error}); start the server or mend --url"
            ) from None
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text or None

    def info(self) -> dict[str, Any]:
        """/server_info."""
        found: dict[str, Any] = self.get("/server_info")
        return found

    def state(self) -> dict[str, Any]:
        """What the first scheduler says of itself."""
        states = self.info().get("internal_states") or [{}]
        found: dict[str, Any] = states[0]
        return found

    def set_state(self, **values: Any) -> None:
        """Change the scheduler's settings; ``Unreachable`` when it refuses."""
        answer = self.post("/set_internal_state", {"server_args": values})
        updated = answer if isinstance(answer, list) else [answer]
        if not all(
            done.get("updated", False) if isinstance(done, dict) else done for done in updated
        ):
            raise Unreachable(
                f"{self.url} refuses {values}; its log says why, most likely it lacks this plugin"
            )

    def prompt(self, tokens: int) -> list[int]:
        """Random ids."""
        return self._random.choices(range(FIRST_TOKEN, LAST_TOKEN), k=tokens)

    def generate(
        self,
        prompts: list[list[int]],
        *,
        new_tokens: int | list[int],
        temperature: float,
        timeout_s: float,
    ) -> list[dict[str, Any]]:
        """Answers to all prompts, sent as one request and read to their end."""
        counts = new_tokens if isinstance(new_tokens, list) else [new_tokens] * len(prompts)
        sampling = [
            {"max_new_tokens": count, "ignore_eos": True, "temperature": temperature}
            for count in counts
        ]
        body = {"input_ids": prompts, "sampling_params": sampling}
        answer: list[dict[str, Any]] = self.post("/generate", body, timeout_s=timeout_s)
        return answer

    @contextmanager
    def held(
        self, requests: int, *, prompt_tokens: int, new_tokens: int, temperature: float = 0.0
    ) -> Iterator[Held]:
        """A batch that runs while the block does; aborted at its end, and waited for.

        A request more goes first and ends after a few tokens: SGLang counts a prompt that it cuts
        into chunks twice, and would hold the last request of a full server back until one ends.
        """
        prompts = [self.prompt(prompt_tokens) for _ in range(requests)]
        counts = [new_tokens] * requests
        if requests > 1:
            prompts, counts = [self.prompt(8), *prompts], [_PILOT_TOKENS, *counts]
        batch = Held()

        def run() -> None:
            try:
                batch.answers = self.generate(
                    prompts, new_tokens=counts, temperature=temperature, timeout_s=600.0
                )
            except Unreachable as error:
                batch.error = str(error)
            batch.over.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield batch
        finally:
            self.post("/abort_request", {"rid": "", "abort_all": True})
            deadline = time.monotonic() + _IDLE_S
            while not batch.over.wait(0.2) and time.monotonic() < deadline:
                self.post("/abort_request", {"rid": "", "abort_all": True})


class Held:
    """A batch on its way."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.error = ""
        self.over = threading.Event()
        """Set when the server is done with it."""
