"""What the GPU benchmarks of the servers share: models without weights, and servers on them.

Owns config-only folders of public models with drafters for them, starting and ending servers, and
the gate: the next server imports while the one before is measured, and takes the GPU only then.
Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from benchmarks.servers import free_port, unneeded_models, wait_healthy
from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.server_client import ServerClient

ROOT = Path(__file__).resolve().parents[2]
MODEL_FILES = {"qwen3", "qwen2", "registry", "utils", "transformers", "dspark"}
"""Modules of SGLang's model folder that the servers need; importing the others takes 20 s."""
GATE = "DSPARK_BENCHMARK_GATE"
"""Environment variable: a file that must exist before a server's processes take the GPU."""
GATE_CODE = f"""import multiprocessing, os, time
def wait():
    gate = os.environ.get("{GATE}")
    while gate and multiprocessing.parent_process() is not None and not os.path.exists(gate):
        time.sleep(0.05)
"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A public model's shape (config.json, no weights) and the drafter made for it."""

    name: str
    config: dict[str, Any]
    drafter: DrafterConfig
    cost_model: str
    """Shipped prices for the policies that compare them."""


def _qwen3(hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


def qwen3(size: str) -> Model:
    """Qwen3-4B, -8B or -14B as published."""
    shapes = {
        "4b": (_qwen3(2560, 9728, 36, 32, tied=True), recipes.qwen3_4b()),
        "8b": (_qwen3(4096, 12288, 36, 32, tied=False), recipes.qwen3_8b()),
        "14b": (_qwen3(5120, 17408, 40, 40, tied=False), recipes.qwen3_14b()),
    }
    config, drafter = shapes[size]
    return Model(
        name=f"Qwen3-{size.upper()}",
        config=config,
        drafter=drafter,
        cost_model=f"h200-qwen3-{size}-analytic",
    )


def tiny() -> Model:
    """A Qwen3 small enough for two CPU cores."""
    config = _qwen3(64, 128, 4, 4, tied=True) | {
        **{"head_dim": 16, "num_key_value_heads": 2, "vocab_size": 512, "torch_dtype": "float32"},
        **{"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048},
    }
    drafter = recipes.dspark(
        {**config, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        mask_token_id=511,
        depth=2,
        markov_rank=16,
    )
    assert isinstance(drafter, DrafterConfig)  # a dense target's
    return Model(name="tiny", config=config, drafter=drafter, cost_model="h200-qwen3-4b-analytic")


def write_model(model: Model, folder: Path) -> tuple[Path, Path]:
    """(target's folder, drafter's folder), each with a config.json and nothing else."""
    target, drafter = make_folder(folder / "target"), make_folder(folder / "drafter")
    write_json(target / "config.json", model.config)
    value = model.drafter.to_dict()
    write_json(drafter / "config.json", value | {"torch_dtype": model.config["torch_dtype"]})
    return target, drafter


def write_steady_drafter(model: Model, folder: Path, *, survival: float) -> Path:
    """A checkpoint whose confidence is ``survival`` at every position, whatever it sees.

    All its weights are zero but the norms' and the confidence head's bias: times do not mind.
    """
    import torch
    from safetensors.torch import save_file

    from sglang_dspark.draft.model.checkpoint import SHARED
    from sglang_dspark.draft.model.model import Drafter
    from sglang_dspark.draft.model.tensors import WEIGHTS

    with torch.device("meta"):
        shapes = {n: t.shape for n, t in Drafter(model.drafter).state_dict().items()}
    dtype = getattr(torch, model.config["torch_dtype"])
    tensors = {
        name: (torch.ones if "norm" in name else torch.zeros)(shape, dtype=dtype)
        for name, shape in shapes.items()
        if name not in SHARED
    }
    bias = next(name for name in tensors if name.startswith("confidence_head") and "bias" in name)
    tensors[bias].fill_(math.log(survival / (1 - survival)))
    write_json(
        make_folder(folder) / "config.json",
        model.drafter.to_dict() | {"torch_dtype": model.config["torch_dtype"]},
    )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def write_shim(folder: Path) -> Path:
    """A folder for PYTHONPATH: the benchmarks' plugins, and this project's where it is missing."""
    (make_folder(folder) / "dspark_benchmark_gate.py").write_text(GATE_CODE)
    shutil.copy(Path(__file__).with_name("simulated_acceptance.py"), folder)
    plugins = {
        "dspark_benchmark_gate": "dspark_benchmark_gate:wait",
        "simulated_acceptance": "simulated_acceptance:register",
    }
    installed = {point.name for point in entry_points(group="sglang.srt.plugins")}
    if "dspark" not in installed:
        plugins["dspark"] = "sglang_dspark.runtime.plugin:register"
    for name, target in plugins.items():
        info = make_folder(folder / f"{name}-0.dist-info")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
        (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {target}\n")
    return folder


def common_arguments(*, on_cpu: bool, max_requests: int, pool_tokens: int) -> list[str]:
    """What every server here is started with."""
    device = (
        ["--device", "cpu", "--attention-backend", "torch_native", "--disable-cuda-graph",
         "--dtype", "float32"]
        if on_cpu
        else ["--dtype", "bfloat16"]
    )  # fmt: skip
    return [
        *("--load-format", "dummy", "--skip-tokenizer-init", "--skip-server-warmup"),
        *("--sampling-backend", "pytorch", "--grammar-backend", "none", *device),
        *("--max-running-requests", str(max_requests), "--max-total-tokens", str(pool_tokens)),
        # Admit the whole batch at once: none of it will use all the tokens it asks for.
        *("--schedule-conservativeness", "0.1"),
        *("--random-seed", "1", "--log-level", "info", "--log-level-http", "warning"),
    ]


class ServerFailed(RuntimeError):
    """It did not come up; the message carries the end of its log."""


class Server:
    """A server in a process group of its own; behind a closed gate until ``open``."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        shim: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.folder = make_folder(folder / name)
        self.client = ServerClient(f"http://127.0.0.1:{(port := free_port())}")
        self.gate = self.folder / "gate"
        self.log_path = self.folder / "server.log"
        self.opened_s = 0.0
        given = environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        self.command = [sys.executable, "-m", "sglang.launch_server", *arguments]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [*self.command, "--host", "127.0.0.1", "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "SGLANG_DISABLED_MODEL_ARCHS": unneeded_models(MODEL_FILES),
                    "HF_HUB_OFFLINE": "1",
                    "TOKENIZERS_PARALLELISM": "false",
                    GATE: str(self.gate),
                    **environment,
                    "PYTHONPATH": os.pathsep.join(filter(None, [str(shim), str(ROOT), given])),
                },
            )

    def open(self, *, timeout_s: float) -> float:
        """Let it take the GPU and wait until it serves; seconds that took. ``ServerFailed``."""
        self.opened_s = time.monotonic()
        self.gate.touch()
        running = self.process
        if wait_healthy(self.client.url, lambda: running.poll() is None, timeout_s=timeout_s):
            return time.monotonic() - self.opened_s
        if running.poll() is not None:
            raise ServerFailed(f"ended with {running.returncode}: {self.complaint()}")
        raise ServerFailed(f"not healthy after {timeout_s:.0f} s: {self.complaint()}")

    def complaint(self) -> str:
        """The end of the log, from the last traceback on where there is one."""
        text = self.log_path.read_text(errors="replace")
        start = text.rfind("Traceback (most recent call last)")
        return (text[start:] if start >= 0 else text)[-6000:]

    def log_lines(self, *words: str) -> list[str]:
        """Lines of the log with one of these words, shortened."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return [line[:300] for line in lines if any(word in line for word in words)][:40]

    def close(self) -> None:
        """Kill it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in _session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """Processes of the session that ``leader`` led."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def servers_of(
    plans: Sequence[dict[str, Any]], *, ahead: bool = True, **shared: Any
) -> Iterator[Iterator[tuple[dict[str, Any], Server]]]:
    """Servers one after the other, each behind its gate; the next one imports meanwhile.

    A plan has ``name``, ``arguments``, ``environment``, and ``quiet`` where nothing must import
    beside it. Whatever happens, nothing stays behind.
    """
    alive: list[Server] = []

    def start(plan: dict[str, Any]) -> Server:
        server = Server(plan["name"], plan["arguments"], environment=plan["environment"], **shared)
        alive.append(server)
        return server

    def walk() -> Iterator[tuple[dict[str, Any], Server]]:
        waiting: Server | None = None
        for number, plan in enumerate(plans):
            server = waiting or start(plan)
            early = ahead and not plan.get("quiet") and number + 1 < len(plans)
            waiting = start(plans[number + 1]) if early else None
            yield plan, server
            server.close()
            alive.remove(server)

    try:
        yield walk()
    finally:
        for server in alive:
            server.close()


def dump(path: Path, value: Any) -> None:
    """Write what is known so far: a run that is cut short keeps it. NaN becomes null."""
    write_json(path, plain(value))


def plain(value: Any) -> Any:
    """JSON values only."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
