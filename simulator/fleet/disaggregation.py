"""From prefill to decode: when a request's KV has reached the other replica.

Owns the price of the transfer. A prefill replica frees the KV when the prefill ends, and a decode
replica reserves it when it admits the request: while it is on its way it takes no one's memory.
Knows no router and no event loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.engine.layout import Records
from simulator.fleet.config import TransferConfig
from simulator.fleet.pools import Pool
from simulator.fleet.replica import Replica


def transfer_seconds(transfer: TransferConfig, pool: Pool, prompt_tokens: int) -> float:
    """Seconds to move the KV of a prompt that a replica of ``pool`` has computed."""
    return transfer.latency_s + pool.kv_bytes(prompt_tokens) / transfer.bytes_per_s


def collect_prefilled(
    replicas: Iterable[Replica], requests: Records, transfer: TransferConfig
) -> list[int]:
    """The requests handed over since the last call, by first token; their ``transfer_s`` is set."""
    found = []
    for replica in replicas:
        for r in replica.take_outgoing():
            tokens = int(requests["prompt_tokens"][r])
            requests["transfer_s"][r] = transfer_seconds(transfer, replica.pool, tokens)
            found.append(r)
    return sorted(found, key=lambda r: (requests["first_token_s"][r], r))


def begin_transfers(waiting: Iterable[int], requests: Records, now_s: float) -> None:
    """Law: no request is ready to decode before its prefill and the transfer after it have ended.

    A transfer begins at the first token, or now where no decode replica was open then.
    """
    for r in waiting:
        begun_s = max(float(requests["first_token_s"][r]), now_s)
        requests["ready_s"][r] = begun_s + requests["transfer_s"][r]
