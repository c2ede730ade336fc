"""What a server tells of itself, as a replay's engine settings.

``server.json``, which ``dspark traces record`` wrote, and the file of ``dspark prices from-server``
are what ``--server`` takes. Owns the translation, and the sentences on what the simulator does
otherwise than that server. A setting that is not told is SGLang's default for that server, not the
simulator's. Knows no trace and no simulation.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.files import decode_record, read_json
from simulator.engine.config import SPECULATIVE_PLACES, EngineConfig

FILE = "server.json"
WITHOUT_CHUNKS = 1 << 30
"""Prompt tokens of a prefill step where chunking is off."""
_OWN_DSPARK = (0, 5, 16)
"""From here on DSPARK is SGLang's own; the plugin's worker before it waits for no places."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pp_size": (1,),
    "disaggregation_mode": ("null",),
    "enable_dp_attention": (),
    "enable_hierarchical_cache": (),
    "enable_lmcache": (),
    "enable_priority_scheduling": (),
    "enable_prefill_delayer": (),
    "enable_dynamic_chunking": (),
    "enable_two_batch_overlap": (),
    "num_continuous_decode_steps": (1,),
    "schedule_conservativeness": (1.0,),
    "prefill_max_requests": (),
    "max_queued_requests": (),
    "radix_eviction_policy": ("lru",),
    "speculative_adaptive": (),
    "cpu_offload_gb": (0,),
}
"""Settings that move times and are not simulated, with the values that change nothing, beside None
and False."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A server as a replay sees it."""

    engine: EngineConfig
    speculative: bool
    """Whether it ran DSPARK."""
    not_simulated: tuple[str, ...]
    """Sentences on what it does and the simulator does not."""


def server_settings(path: str | Path) -> ServerSettings:
    """The settings in a ``server.json``, or in the folder that holds one.

    ``ValueError`` naming the file and what it lacks.
    """
    file = Path(path)
    if file.is_dir():
        file /= FILE
        if not file.is_file():
            raise ValueError(
                f"{path}: holds no {FILE}, which says how the server schedules; record with dspark "
                "traces record --url, or name the file with --server"
            )
    told = read_json(file)
    if isinstance(told, dict) and "engine" in told and "page_size" not in told:
        return _written(told, file)
    if not isinstance(told, dict) or "page_size" not in told:
        raise ValueError(
            f"{file}: is no {FILE}; give the one that dspark traces record wrote, or what dspark "
            "prices from-server writes"
        )
    return settings_told(told, str(file))


def settings_told(told: dict[str, Any], file: str, *, whole: bool = True) -> ServerSettings:
    """The settings in what a server tells, by SGLang's names.

    ``file`` begins every ``ValueError``. Without ``whole`` nothing need be told that SGLang derives
    from the GPU's memory: running requests, KV tokens and chunks are the simulator's defaults then.
    """
    speculative = told.get("speculative_algorithm") is not None
    try:
        engine = EngineConfig(
            max_running_requests=_places(told, speculative, file, whole=whole),
            chunked_prefill_size=_chunk(told),
            max_prefill_tokens=_whole(told, "max_prefill_tokens", EngineConfig.max_prefill_tokens),
            prefill_decode_interval=_whole(told, "prefill_decode_interval", 0),
            min_free_slots_delay=_free_places(told, speculative),
            # SGLang switches it off under speculation.
            enable_mixed_chunk=bool(told.get("enable_mixed_chunk")) and not speculative,
            page_size=_whole(told, "page_size", 1),
            disable_overlap_schedule=bool(told.get("disable_overlap_schedule")),
            enable_prefix_cache=not told.get("disable_radix_cache", False),
            kv_pool_tokens=_pool(told, file, whole=whole),
        )
    except ValueError as error:
        raise ValueError(str(error) if file in str(error) else f"{file}: {error}") from None
    return ServerSettings(
        engine=engine, speculative=speculative, not_simulated=tuple(_otherwise(told))
    )


def _written(told: dict[str, Any], file: Path) -> ServerSettings:
    """A file of ``dspark prices from-server``, which is a ``--config`` file too."""
    engine = decode_record(told["engine"], EngineConfig, where=f"{file}: engine")
    known = told.get("provenance")
    known = known if isinstance(known, dict) else {}
    lines = str(known.get("not_simulated", "")).split("\n")
    return ServerSettings(
        engine=engine,
        speculative="speculative_algorithm" in known,
        not_simulated=tuple(line for line in lines if line),
    )


def engine_of(server: str | None) -> EngineConfig | None:
    """What ``--server`` gives a command that replays; what is simulated otherwise is warned of."""
    if server is None:
        return None
    settings = server_settings(server)
    for line in settings.not_simulated:
        warnings.warn(line, stacklevel=2)
    return settings.engine


def _whole(told: dict[str, Any], name: str, missing: int) -> int:
    value = told.get(name)
    if value is None:
        return missing
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is no whole number; record the server again")
    return value


def _of_rank(told: dict[str, Any], name: str) -> Any:
    """What the first data-parallel rank told; None where it did not."""
    values = told.get(name)
    return values[0] if isinstance(values, list) and values else None


def _places(told: dict[str, Any], speculative: bool, file: str, *, whole: bool) -> int | None:
    limit = _of_rank(told, "running_requests_limit")
    if isinstance(limit, int):
        return limit
    asked = told.get("max_running_requests")
    if asked is None and speculative:
        return SPECULATIVE_PLACES
    if asked is None and not whole:
        return None
    if asked is None:
        raise ValueError(
            f"{file}: tells no max_running_requests; record the server again, or set it in the "
            "engine of a --config file"
        )
    return _whole(told, "max_running_requests", 0)


def _chunk(told: dict[str, Any]) -> int:
    size = _whole(told, "chunked_prefill_size", EngineConfig.chunked_prefill_size)
    return size if size > 0 else WITHOUT_CHUNKS


def _free_places(told: dict[str, Any], speculative: bool) -> int | None:
    given = told.get("min_free_slots_delay")
    if given is not None:
        return max(_whole(told, "min_free_slots_delay", 1), 1)
    release = tuple(int(part) for part in re.findall(r"\d+", str(told.get("version", "")))[:3])
    return 1 if speculative and release and release < _OWN_DSPARK else None


def _pool(told: dict[str, Any], file: str, *, whole: bool) -> int | None:
    usage = _of_rank(told, "memory_usage")
    tokens = usage.get("token_capacity") if isinstance(usage, dict) else None
    if isinstance(tokens, int):
        return tokens
    if told.get("max_total_num_tokens") is None and not whole:
        return None
    if told.get("max_total_num_tokens") is None:
        raise ValueError(f"{file}: tells no KV memory; record the server again")
    return _whole(told, "max_total_num_tokens", 0)


def _otherwise(told: dict[str, Any]) -> list[str]:
    """Sentences."""
    lines = []
    ranks = told.get("dp_size") or 1
    if ranks > 1:
        lines.append(
            f"the server has {ranks} data-parallel ranks; one replica is one of them: replay "
            f"--replicas {ranks}"
        )
    schedule = told.get("schedule_policy")
    if schedule not in (None, "fcfs"):
        lines.append(f"the server schedules by {schedule!r}; a replay takes requests as they came")
    for name, neutral in _NEUTRAL.items():
        value = told.get(name)
        if value not in (None, False, *neutral, *map(str, neutral)):
            lines.append(f"the server has {name} {value}, which is not simulated")
    return lines
