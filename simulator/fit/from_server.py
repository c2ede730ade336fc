"""The engine settings of a server, from what it tells or from how it is started.

    python -m simulator.fit.from_server http://127.0.0.1:30000 -o engine.json
    python -m simulator.fit.from_server "python -m sglang.launch_server ..." -o engine.json

Owns the command: where settings come from, which line says what of each, and the file, which
``--server`` and ``--config`` take. What the settings mean is ``simulator.study.server``'s.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import atomic_write, read_json, refuse_onto_input, refuse_replacing
from sglang_dspark.server_client import ServerClient
from simulator.engine.config import PLACES
from simulator.study.launch import EXAMPLE, Launch, is_launch, read_launch
from simulator.study.server import WITHOUT_CHUNKS, ServerSettings, settings_told
from traces.pulling import told_by_rank

NAME = "simulator.fit.from_server"
_TOLD = {
    "max_running_requests": ("running_requests_limit", "max_running_requests"),
    "chunked_prefill_size": ("chunked_prefill_size",),
    "max_prefill_tokens": ("max_prefill_tokens",),
    "prefill_decode_interval": ("prefill_decode_interval",),
    "min_free_slots_delay": ("min_free_slots_delay",),
    "disable_overlap_schedule": ("disable_overlap_schedule",),
    "enable_mixed_chunk": ("enable_mixed_chunk",),
    "page_size": ("page_size",),
    "enable_prefix_cache": ("disable_radix_cache",),
    "kv_pool_tokens": ("memory_usage", "max_total_num_tokens"),
}
"""By the engine's setting: where a server tells it."""
_DERIVED = {
    "max_running_requests": "SGLang derives it from memory; ask the running server",
    "chunked_prefill_size": "SGLang's for a GPU of 60 to 160 GB; 16384 above, 2048 or 4096 below",
    "kv_pool_tokens": "SGLang derives it from memory; ask the running server",
    "min_free_slots_delay": "SGLang's own choice, by running requests",
}
"""What is to be said of a setting that a command leaves to SGLang."""
_PRICED = (
    "model_path", "tp_size", "dtype", "quantization", "kv_cache_dtype", "mem_fraction_static",
    "attention_backend", "moe_runner_backend", "disable_cuda_graph", "cuda_graph_max_bs",
    "cuda_graph_bs", "cuda_graph_max_bs_decode", "cuda_graph_bs_decode", "cuda_graph_config",
)  # fmt: skip
"""Settings that are in the prices of a cost model."""
_SPECULATIVE = (
    "speculative_algorithm", "speculative_draft_model_path", "speculative_dspark_block_size",
    "speculative_num_draft_tokens",
)  # fmt: skip
_ELSEWHERE = {
    "speculative_dspark_sps_table_path": "give it as --cost-model",
    "speculative_dspark_cost_model": "give it as --cost-model",
    "speculative_dspark_policy": "give it as --policy",
    "speculative_dspark_confidence_sts_path": "name it as 'calibration' in a policy file",
    "config": "what it holds is not read; ask the running server, or give it as flags",
}
_MODE = "SGLANG_RAGGED_VERIFY_MODE"
_KEPT = ("version", "device", "dp_size", *_PRICED, *_SPECULATIVE, *_ELSEWHERE)
"""What the file keeps of the rest, as text."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A server's settings with where they are from."""

    source: str
    told: dict[str, Any]
    settings: ServerSettings
    launch: Launch | None = None
    """The command, where it is one."""


def look(source: str) -> Found:
    """From a URL, a file with the answer of ``/server_info`` or ``server.json``, or a command.

    ``ValueError`` in one sentence.
    """
    if source.startswith(("http://", "https://")):
        try:
            return _asked(ServerClient(source).info(), f"{source.rstrip('/')}/server_info")
        except (HTTPException, UnicodeDecodeError) as error:  # it died while it answered
            raise ValueError(f"{source}: {error}; ask again") from None
    if not is_launch(source):
        if not source.endswith(".json"):
            raise ValueError(
                f"{source!r} is neither a URL, nor a .json file, nor a command in quotes that "
                f"starts SGLang, like '{EXAMPLE}'"
            )
        return _asked(read_json(source), source)
    launch = read_launch(source)
    told = dict(launch.told)
    if "max_total_tokens" in told:
        told["max_total_num_tokens"] = told.pop("max_total_tokens")
    settings = settings_told(told, "the command", whole=False)
    return Found(source="the command", told=told, settings=settings, launch=launch)


def _asked(info: Any, where: str) -> Found:
    if not isinstance(info, dict) or "page_size" not in info:
        raise ValueError(
            f"{where}: is no answer of SGLang's /server_info, and no server.json; ask a server by "
            "its URL"
        )
    told = info | told_by_rank(info) if "internal_states" in info else info
    return Found(source=where, told=told, settings=settings_told(told, where))


def origin(found: Found, setting: str) -> str:
    """Where an engine setting comes from, in words."""
    told = [name for name in _TOLD[setting] if _said(found.told.get(name))]
    if found.launch is None:
        return "told" if told else "SGLang's default"
    words = found.launch.words
    given = [words[name] for name in (*told, "max_total_tokens") if name in words]
    if given and told:
        return given[0]
    if setting == "max_running_requests" and found.settings.speculative:
        return "SGLang's under speculation"
    return _DERIVED.get(setting, "SGLang's default")


def _said(value: Any) -> bool:
    return value is not None and value != [] and value != [None]


def lines(found: Found) -> list[str]:
    """What was taken and from where, then a NOTE on everything else that moves a replay."""
    engine = dataclasses.asdict(found.settings.engine)
    shown = [(name, _shown(name, engine[name]), origin(found, name)) for name in _TOLD]
    names, values = (max(len(row[i]) for row in shown) for i in (0, 1))
    text = [f"{name:<{names}}  {value:<{values}}  {where}" for name, value, where in shown]
    told = found.told
    priced = ", ".join(_brief(name, told[name]) for name in _PRICED if _set(told.get(name)))
    if priced:
        text.append(f"NOTE: in the prices of the cost model, not here: {priced}")
    if found.settings.speculative:
        parts = ", ".join(_brief(name, told[name]) for name in _SPECULATIVE if _set(told.get(name)))
        text.append(f"NOTE: the policy and the acceptance profile say what is drafted: {parts}")
    text += [
        f"NOTE: {name} {told[name]}: {remedy}"
        for name, remedy in _ELSEWHERE.items()
        if _set(told.get(name))
    ]
    today = _today(found)
    if today:
        text.append(f"NOTE: {today}")
    text += [f"NOTE: {line}" for line in found.settings.not_simulated]
    others = unread(found)
    if others:
        text.append(f"not simulated: {', '.join(others)}")
    return text


def _set(value: Any) -> bool:
    return value is not None and value is not False


def _brief(name: str, value: Any) -> str:
    decode = value.get("decode") if isinstance(value, dict) else None
    if isinstance(decode, dict):  # the lists of all sizes are in the file
        return f"{name} {decode.get('backend')} up to {decode.get('max_bs')} requests"
    return name if value is True else f"{name} {value}"[:100]


def _today(found: Found) -> str:
    """What decides there now, as ``--current`` takes it; empty where it is not known."""
    launch = found.launch
    if launch is None:
        states = found.told.get("internal_states") or [{}]
        plugin = states[0].get("dspark") if isinstance(states[0], dict) else None
        policy = plugin.get("policy") if isinstance(plugin, dict) else None
        return f"this project's plugin decides there by --current {policy}" if policy else ""
    if launch.told.get("speculative_algorithm") != "DSPARK":
        return ""
    mode = launch.environment.get(_MODE, "static")
    if mode == "static":
        return (
            f"{_MODE} is static: SGLang's own DSPARK verifies everything, which is --current fixed"
        )
    table = launch.told.get("speculative_dspark_sps_table_path")
    policy = "sglang" if table else "sglang:flat"
    return f"{_MODE} is {mode}: what SGLang's own DSPARK decides is --current {policy}"


def _shown(name: str, value: Any) -> str:
    if name == "max_running_requests" and value is None:
        return str(PLACES)  # a replay's, without speculation
    if value is None:
        return "the cost model's" if name == "kv_pool_tokens" else "by SGLang's rule"
    if name == "chunked_prefill_size" and value >= WITHOUT_CHUNKS:
        return "off"
    return str(value).lower() if isinstance(value, bool) else str(value)


def unread(found: Found) -> list[str]:
    """The names in a command that nothing else speaks of, assignments first.

    Without values: a key or a password may be among them.
    """
    launch = found.launch
    if launch is None:
        return []
    said = {name for names in _TOLD.values() for name in names}
    said |= {"max_total_tokens", "dp_size", "schedule_policy"}
    said |= {*_PRICED, *_SPECULATIVE, *_ELSEWHERE}
    noted = " ".join(found.settings.not_simulated).split()
    words = [w.split(" ")[0] for n, w in launch.words.items() if n not in {*said, *noted} and n]
    bare = launch.words.get("", "").split()
    return [*(name for name in launch.environment if name != _MODE), *bare, *words]


def engine_file(found: Found) -> str:
    """The text of the file: ``engine``, and as ``provenance`` the rest that is known."""
    engine = {k: v for k, v in dataclasses.asdict(found.settings.engine).items() if v is not None}
    rest = {name: str(found.told[name]) for name in _KEPT if _set(found.told.get(name))}
    notes = "\n".join(found.settings.not_simulated)
    provenance = {"settings_from": found.source, **rest, "not_simulated": notes}
    return json.dumps({"engine": engine, "provenance": provenance}, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(NAME, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser(
        description="Take the engine settings of an SGLang server, so that a replay schedules as "
        "it does: from the running server, from what it told, or from the command that starts it. "
        "What the simulator does otherwise is said.",
        examples=[
            "http://127.0.0.1:30000 -o engine.json",
            "server_info.json -o engine.json",
            '"python -m sglang.launch_server ..." -o engine.json',
        ],
        page="docs/fleet.md",
    )
    parser.add_argument(
        "source", metavar="URL|FILE|COMMAND",
        help="a server's address; a .json file with its /server_info, or a server.json; or the "
        "command that starts it, in quotes",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", metavar="FILE",
        help="file to write for --server, or --config, of run and tune; --server of capacity",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace another file in --out")
    arguments = parser.parse_args(argv)
    found = look(arguments.source)
    text = engine_file(found)
    if arguments.out:
        if found.launch is None:
            refuse_onto_input(arguments.out, found.source)
        refuse_replacing(arguments.out, text.encode(), force=arguments.force)
        with atomic_write(arguments.out) as file:
            file.write(text)
    print("\n".join(lines(found)))
    if arguments.out:
        print(f"\nWrote {arguments.out}: dspark run chat --server {arguments.out}")


if __name__ == "__main__":
    raise SystemExit(main())
