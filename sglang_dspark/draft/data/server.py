"""Answers from an OpenAI-compatible server: SGLang first, anything that speaks the same.

Owns the HTTP requests, their retries and how a prompt becomes a request. Knows no tokens beyond
passing them on, and no files.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server and the sampling to ask for. The key comes from ``OPENAI_API_KEY``, if set."""

    url: str
    """Base address, with or without ``/v1``."""
    model: str
    """Name that the server serves; SGLang takes any."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus sampling."""
    max_tokens: int = 2048
    """Longest answer."""
    timeout_s: float = 600.0
    """Patience for one answer."""
    attempts: int = 5
    """Tries before giving up on a passing failure."""
    pause_s: float = 1.0
    """Wait before the second try; doubles with every further one."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"--url {self.url}: give an address that begins with http://")

    def _address(self, path: str) -> str:
        base = self.url.rstrip("/")
        return f"{base if base.endswith('/v1') else base + '/v1'}/{path}"

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address, problem = self._address(path), ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                detail = error.read().decode(errors="replace").strip()[:200].replace("\n", " ")
                problem = f"status {error.code} {detail}".strip()
                if error.code not in _PASSING:
                    raise ValueError(f"{address}: {problem}; check model and prompt") from None
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                problem = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise ValueError(
            f"{address}: failed {self.attempts} times, lastly with {problem}; answers so far are "
            "kept, start the server and run again"
        )

    def _body(self, seed: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }

    def chat(self, messages: list[dict[str, str]], *, seed: int) -> tuple[str, str]:
        """(text, finish reason) of the next assistant message."""
        reply = self._post("chat/completions", {**self._body(seed), "messages": messages})
        return self._choice(reply, "message")

    def complete(self, prompt: str | list[int], *, seed: int) -> tuple[str, str]:
        """(text, finish reason) of a continuation; ``prompt`` is text or token ids."""
        reply = self._post("completions", {**self._body(seed), "prompt": prompt})
        return self._choice(reply, "text")

    def _choice(self, reply: Any, kind: str) -> tuple[str, str]:
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if kind == "message" else choice["text"]
            finish = choice["finish_reason"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"{self.url}: the reply has no choice with a {kind}; is it an OpenAI-compatible "
                "server?"
            ) from None
        return text or "", "length" if finish == "length" else "stop"
