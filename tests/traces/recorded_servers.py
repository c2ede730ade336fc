"""A server that answers as SGLang's /server_info does, or as none should."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

GAMMA = 3


def req(rng: np.random.Generator, rid: str, *, confidence: bool = True) -> dict[str, Any]:
    """One request of a step, as SGLang 0.5.21 writes it."""
    verify_len = int(rng.integers(1, GAMMA + 2))
    accepted = int(rng.integers(0, verify_len))
    row = {
        "req_pool_index": 1,
        "prefix_len": int(rng.integers(1, 500)),
        "verify_len": verify_len,
        "acc_len": accepted + 1,
        "correct_drafts": accepted,
        "cap_trim": 0,
        "bonus_token": 5,
        "draft_tokens": [1] * GAMMA,
        "rid": rid,
    }
    if confidence:
        row["confidence"] = [round(float(p), 4) for p in rng.random(GAMMA)]
    return row


def step(count: int, *, seed: int = 0, rows: int = 2, confidence: bool = True) -> dict[str, Any]:
    """One record of a step."""
    rng = np.random.default_rng((seed, count))
    return {
        "forward_ct": count,
        "bs": rows,
        "mode": "compact",
        "budget": 3,
        "lag_steps": 2,
        "num_running_reqs": rows,
        "predicted_step_ms": 10.0,
        "predicted_theta": 500.0,
        "step_cpu_ms": round(float(rng.uniform(5, 15)), 4),
        "reqs": [req(rng, f"r{row}", confidence=confidence) for row in range(rows)],
    }


def info_of(records: list[Any] | None, **state: Any) -> dict[str, Any]:
    """An answer of /server_info."""
    if records is not None:
        state["dspark_info_record"] = {
            "mode": "compact",
            "gamma": GAMMA,
            "verify_num_draft_tokens": GAMMA + 1,
            "components": ["core", "reqs", "step_cpu_time"],
            "records": records,
        }
    return {
        "version": "0.5.21",
        "model_path": "m",
        "api_key": "secret",
        "max_running_requests": 8,
        "internal_states": [state],
    }


class FakeServer:
    """Answers what ``answer`` says until it is closed; forgets its records when asked to."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.state: dict[str, Any] = {}
        self.answer: Any = None
        """Bytes sent instead, when set; ``hang up`` closes the connection midway."""
        self.asked = 0
        self.cleared = 0
        self.before_clear: Any = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = outer.answer
                if body is None:
                    body = json.dumps(info_of(outer.records, **outer.state)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) + 100 * (body == b"hang up")))
                self.end_headers()
                self.wfile.write(body)
                if body == b"hang up":
                    with suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                if json.loads(text)["server_args"].get("dspark_clear_info_records"):
                    outer.cleared += 1
                    outer.records.clear()
                body = b'[{"updated": true}]'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Nobody answers any more."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *args: object) -> None:
        if self._thread.is_alive():
            self.close()
