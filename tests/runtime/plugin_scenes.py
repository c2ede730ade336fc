"""What the plugin's tests run inside one process with the real SGLang; prints JSON, scene by scene.

``python plugin_scenes.py FOLDER``: FOLDER holds the configs that ``write_configs`` makes. Importing
SGLang takes seconds, so all scenes share a process; their order matters where they say so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

GAMMA = 4
COST = "cost.json"
CPU_FLAGS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--dtype", "float32", "--disable-cuda-graph"),
)
LAUNCHER = """
import pickle, sys
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
with open(sys.argv[1], "rb") as file:
    server_args = pickle.load(file)
load_plugins()
server_args.check_server_args()
print(sum("TokenizerManager" in target for target in HookRegistry._patched))
"""
CHILD = """
import sglang.srt.plugins as plugins
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
plugins.load_plugins()
print(SpeculativeAlgorithm.from_string("DSPARK").name)
"""

TOKENS = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4}}
REQUESTS: dict[str, dict[str, Any]] = {
    "custom_logit_processor": {**TOKENS, "custom_logit_processor": "x"},
    "return_hidden_states": {**TOKENS, "return_hidden_states": True},
    "lora_path": {**TOKENS, "lora_path": "adapter"},
    "image_data": {**TOKENS, "image_data": "https://example.invalid/a.png"},
    "input_embeds": {"input_embeds": [[0.0] * 64]},
    "batch": {"input_ids": [[1], [2]], "return_hidden_states": [False, True]},
}
UPDATES: dict[str, dict[str, Any]] = {
    "update_weights_from_disk": {"model_path": "elsewhere"},
    "update_weights_from_tensor": {"serialized_named_tensors": ["AA=="]},
    "update_weights_from_distributed": {"names": ["w"], "dtypes": ["float32"], "shapes": [[1]]},
    "update_weights_from_ipc": {"zmq_handles": {}},
}


def write_configs(folder: Path) -> None:
    """A target, drafters that fit it and that do not, a cost model, policies; no weights."""
    from sglang_dspark.core.costs.library import load_cost_model
    from sglang_dspark.core.costs.model import layout
    from sglang_dspark.draft.model.config import DrafterConfig

    target = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    (folder / "target").mkdir()
    (folder / "target" / "config.json").write_text(json.dumps(target))
    drafter = DrafterConfig(
        architecture="Qwen3DSparkModel",
        model_type="qwen3",
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        activation="silu",
        rms_norm_eps=1e-6,
        num_hidden_layers=1,
        num_target_layers=4,
        block_size=GAMMA,
        mask_token_id=319,
        target_layer_ids=(0, 2),
        num_anchors=8,
        markov_rank=8,
        target_text_config={"rope_theta": 10_000.0, "max_position_embeddings": 256},
    )
    headless = {"enable_confidence_head": False, "confidence_head_with_markov": False}
    for name, changes in (
        ("drafter", {}),
        ("headless", headless),
        ("stranger", {"hidden_size": 96}),
        ("deeper", {"num_target_layers": 6}),
        ("eagle", {"architecture": "Qwen3Eagle3Model", "markov_rank": 0, **headless}),
    ):
        (folder / name).mkdir()
        dataclasses.replace(drafter, **changes).write(folder / name)
    plain = dataclasses.asdict(load_cost_model("h200-qwen3-14b-sglang-pr35413"))
    plain = {key: value for key, value in plain.items() if value is not None or key == "fit_error"}
    plain["name"], plain["draft"]["gamma"] = "tiny-gpu", GAMMA
    (folder / COST).write_text(layout(json.loads(json.dumps(plain))))
    (folder / "broken.json").write_text('{"schema_version": 1, "policy": "global", "budget": 3}')
    (folder / "other-gamma.json").write_text(
        '{"schema_version": 1, "policy": "threshold", "calibration": {"temperatures": [1, 1]}}'
    )


def command(folder: Path, *flags: str, drafter: str = "drafter") -> list[str]:
    """The arguments of a DSPARK server on CPU."""
    return [
        *("--model-path", str(folder / "target"), "--speculative-algorithm", "DSPARK"),
        *("--speculative-draft-model-path", str(folder / drafter), *CPU_FLAGS, *flags),
    ]


def outcome(action: Callable[[], Any]) -> str:
    """How ``action`` ended: ``ok``, or the kind of its exception and the text."""
    try:
        with redirect_stderr(StringIO()):
            action()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """The environment with ``values`` in it, and as it was afterwards."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def prepared(arguments: list[str]) -> Any:
    from sglang.srt.server_args import prepare_server_args

    return prepare_server_args(arguments)


def knows_dspark() -> bool:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    return outcome(lambda: SpeculativeAlgorithm.from_string("DSPARK")) == "ok"


def hooked() -> list[str]:
    from sglang.srt.plugins.hook_registry import HookRegistry

    return sorted(target.removeprefix("sglang.srt.") for target in HookRegistry._patched)


@contextmanager
def version(text: str) -> Iterator[None]:
    """SGLang says that it is ``text``."""
    real = importlib.metadata.version
    with mock.patch.object(
        importlib.metadata, "version", lambda name: text if name == "sglang" else real(name)
    ):
        yield


def unasked(folder: Path) -> dict[str, Any]:
    """First: a server without DSPARK, whatever the flags and the version."""
    flags = ["--speculative-dspark-policy", "nonsense"]
    plain = ["--model-path", str(folder / "target"), *CPU_FLAGS]
    with environment(SPECULATIVE_DSPARK_ACTIVE="1"):
        ended = [outcome(lambda: prepared([*plain, *flags]))]
        active = "SPECULATIVE_DSPARK_ACTIVE" in os.environ
    for text in ("0.5.14", "0.5.21", "1.0.0", "unknown"):
        with version(text):
            ended.append(outcome(lambda: prepared(plain)))
    return {"ended": ended, "active": active, "known": knows_dspark(), "hooked": hooked()}


def versions(folder: Path) -> dict[str, str]:
    """Before any server may start: the same command under other versions."""
    texts = ("0.5.14", "0.5.15", "0.5.16", "0.5.21", "0.5.15.post2", "unknown")
    ended = {}
    for text in texts:
        with version(text), environment():
            ended[text] = outcome(lambda: prepared(command(folder)))
    return ended


def refused(folder: Path) -> dict[str, str]:
    """Commands that must not start."""
    cost = ["--speculative-dspark-cost-model", str(folder / COST)]
    policy = "--speculative-dspark-policy"
    missing = ["--model-path", str(folder / "target"), "--speculative-algorithm", "dspark"]
    commands = {
        "no drafter": [*missing, *CPU_FLAGS],
        "missing drafter": command(folder, *cost, drafter="nowhere"),
        "no config": command(folder, *cost, drafter="."),
        "unknown policy": command(folder, *cost, policy, "globall"),
        "unreadable policy": command(folder, *cost, policy, str(folder / "none.json")),
        "broken policy": command(folder, *cost, policy, str(folder / "broken.json")),
        "long policy": command(folder, *cost, policy, "fixed:5"),
        "no cost model": command(folder),
        "unknown cost model": command(folder, "--speculative-dspark-cost-model", "h300"),
        "gamma of costs": command(
            folder, "--speculative-dspark-cost-model", "h200-qwen3-8b-analytic"
        ),
        "gamma of calibration": command(folder, policy, str(folder / "other-gamma.json")),
        "headless": command(folder, *cost, drafter="headless"),
        "stranger": command(folder, *cost, drafter="stranger"),
        "deeper": command(folder, *cost, drafter="deeper"),
        "eagle": command(folder, policy, "fixed", drafter="eagle"),
        "lora": command(folder, *cost, "--enable-lora"),
        "width": command(folder, *cost, "--speculative-num-draft-tokens", "3"),
        "step log": command(folder, *cost, "--speculative-dspark-step-log", str(folder / COST)),
        "log size": command(folder, *cost, "--speculative-dspark-step-log-mb", "0"),
    }
    ended = {}
    for name, arguments in commands.items():
        with environment():
            ended[name] = outcome(partial(prepared, arguments))
    with environment():
        from sglang.srt.server_args import ServerArgs

        ended["engine"] = outcome(
            lambda: ServerArgs(model_path=str(folder / "target"), speculative_algorithm="DSPARK")
        )
    return ended


def accepted(folder: Path) -> dict[str, Any]:
    """Commands that must start: by flags, a YAML file, the environment; and their children."""
    cost = str(folder / COST)
    found: dict[str, Any] = {}
    with environment(SPECULATIVE_DSPARK_POLICY="fixed", SPECULATIVE_DSPARK_STEP_LOG_MB="7"):
        arguments = prepared(
            command(folder, "--speculative-dspark-policy=threshold:0.5", "--max-running-requests=4")
        )
        found["flags"] = {k: v for k, v in os.environ.items() if k.startswith("SPECULATIVE_")}
        found["width"] = arguments.speculative_num_draft_tokens
        child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
        found["child"] = child.stdout.split()[-1:] or child.stderr
        (folder / "arguments.pickle").write_bytes(pickle.dumps(arguments))
        launcher = subprocess.run(
            [sys.executable, "-c", LAUNCHER, str(folder / "arguments.pickle")],
            capture_output=True,
            text=True,
        )
        found["launcher"] = launcher.stdout.split()[-1:] or launcher.stderr
    config = folder / "server.yaml"
    config.write_text(
        f"speculative-dspark-policy: early_stop\nspeculative-dspark-cost-model: {cost}\n"
    )
    with environment():
        prepared(["--config", str(config), *command(folder)])
        found["yaml"] = {k: v for k, v in os.environ.items() if k.startswith("SPECULATIVE_")}
    with environment(SPECULATIVE_DSPARK_POLICY="fixed:2"):
        found["headless"] = outcome(lambda: prepared(command(folder, drafter="headless")))
    with environment(SPECULATIVE_DSPARK_COST_MODEL=cost):
        from sglang.srt.server_args import ServerArgs

        found["engine"] = outcome(
            lambda: ServerArgs(
                model_path=str(folder / "target"),
                speculative_algorithm="DSPARK",
                speculative_draft_model_path=str(folder / "drafter"),
                device="cpu",
                attention_backend="torch_native",
                sampling_backend="pytorch",
                dtype="float32",
                disable_cuda_graph=True,
            )
        )
    found["hooked"] = hooked()
    return found


def defaults(folder: Path) -> dict[str, Any]:
    """Whether the served values are SGLang's own defaults, and every field exists."""
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs

    from sglang_dspark.runtime import refusals

    fields = {field.name: field.default for field in dataclasses.fields(ServerArgs)}
    requests = {field.name for field in dataclasses.fields(GenerateReqInput)}
    return {
        "server": [
            name for name, served, *_ in refusals.SERVER_FLAGS if fields.get(name, ...) != served
        ],
        "request": [name for name, *_ in refusals.REQUEST_FIELDS if name not in requests],
        "manager": [
            name for name in refusals.WEIGHT_UPDATES if not hasattr(TokenizerManager, name)
        ],
    }


def rivals(folder: Path) -> dict[str, str]:
    """A hook target that is not there; one that another plugin holds."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_dspark.runtime import plugin, refusals

    ended = {}
    HookRegistry.register("sglang.srt.server_args.NoSuch.thing", refusals._check_one)
    ended["missing"] = outcome(plugin._apply)
    del HookRegistry._hooks["sglang.srt.server_args.NoSuch.thing"]
    target = "sglang.srt.server_args.ServerArgs.url"
    HookRegistry.register(target, lambda url, *args: url, HookType.AFTER)
    HookRegistry.apply_hooks()
    HookRegistry.register(target, refusals._check_one, HookType.BEFORE)
    ended["held"] = outcome(plugin._apply)
    del HookRegistry._hooks[target]
    return ended


def http(folder: Path) -> dict[str, Any]:
    """Requests to SGLang's own HTTP application and tokenizer manager, without a scheduler."""
    import httpx
    from sglang.srt.entrypoints import http_server
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import PortArgs, set_global_server_args_for_scheduler

    with environment():
        flags = ("--speculative-dspark-policy=fixed", "--skip-tokenizer-init")
        server_args = prepared(
            command(
                folder, *flags, "--enable-custom-logit-processor", "--enable-return-hidden-states"
            )
        )
    set_global_server_args_for_scheduler(server_args)
    found: dict[str, Any] = {}

    async def ask() -> None:
        manager = TokenizerManager(server_args, PortArgs.init_new(server_args))
        state = http_server._GlobalState(
            tokenizer_manager=manager, template_manager=None, scheduler_info={}
        )
        http_server.set_global_state(state)
        transport = httpx.ASGITransport(app=http_server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for name, value in REQUESTS.items():
                answer = await client.post("/generate", json=value)
                found[name] = [answer.status_code, answer.text]
            for path, value in UPDATES.items():
                answer = await client.post(f"/{path}", json=value)
                found[path] = [answer.status_code, answer.text]
        request = GenerateReqInput(input_ids=[1, 2], sampling_params={"min_p": 0.1})
        request.normalize_batch_and_arguments()
        found["plain request"] = outcome(lambda: manager._validate_one_request(request, [1, 2]))
        request.image_data = ["https://example.invalid/a.png"]
        server_args.speculative_algorithm = None
        found["other algorithm"] = outcome(lambda: manager._validate_one_request(request, [1, 2]))
        found["pending"] = len(manager.rid_to_state)

    asyncio.run(ask())
    return found


SCENES = (unasked, versions, refused, accepted, defaults, rivals, http)


def main() -> None:
    from sglang.srt.plugins import load_plugins

    folder = Path(sys.argv[1])
    write_configs(folder)
    load_plugins()
    for scene in SCENES:
        print(json.dumps({scene.__name__: scene(folder)}), flush=True)


if __name__ == "__main__":
    main()
