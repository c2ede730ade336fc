"""The training loop: blocks of target states in, optimiser steps out, resumable at any kill.

Owns one step's arithmetic, its metrics and the resume file. Knows drafters only through their
training calls and sources of states only through ``batch``. A step's loss is divided by the global
batch's weight beforehand, so gradients of micro-batches and processes simply add up.

Shapes: B sequences, A anchors, K slots, N blocks, D hidden.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from sglang_dspark.draft.data.anchors import (
    Blocks,
    Plan,
    draw_anchors,
    make_blocks,
    micro_batches,
    slot_counts,
)
from sglang_dspark.draft.data.states import StateBatch, States
from sglang_dspark.draft.training.config import TrainConfig, check_same_run
from sglang_dspark.draft.training.losses import LossMix, position_weights, training_loss
from sglang_dspark.draft.training.optim import FlatAdamW, Schedule
from sglang_dspark.files import atomic_write, make_folder, os_problem

_SUMMED = ("total", "ce", "tv", "confidence")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which process this is."""

    rank: int = 0
    """0 to world - 1; process 0 writes the files."""
    world: int = 1
    """Processes in all."""


class Trainer:
    """One run. ``run`` trains from wherever the resume file left off to the end."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        drafter: Any,
        states: States,
        mix: LossMix,
        identity: dict[str, str],
        place: Place,
        export: Callable[[Path], None],
    ) -> None:
        """``identity``: digests of target and samples. ``export`` writes a checkpoint folder."""
        self.config, self.drafter, self.states = config, drafter, states
        self._mix, self._place, self._export = mix, place, export
        self._spans = states.spans
        if config.batch < place.world:
            raise ValueError(
                f"batch {config.batch}: {place.world} processes need one sequence each"
            )
        if len(self._spans) < config.batch:
            raise ValueError(
                f"{config.data}: {len(self._spans)} samples are fewer than batch {config.batch}; "
                "lower batch or generate more"
            )
        self._plan = Plan(samples=len(self._spans), batch=config.batch, seed=config.seed)
        self.steps = max(1, round(config.epochs * self._plan.steps_per_epoch))
        self._schedule = Schedule(peak=config.learning_rate, steps=self.steps, warmup=config.warmup)
        self._optimiser = FlatAdamW(
            (p for p in drafter.parameters() if p.requires_grad),
            weight_decay=config.weight_decay,
            betas=config.betas,
            clip=config.clip,
        )
        self._device = self._optimiser.device
        self._gamma: int = drafter.config.gamma
        self._slot_K = position_weights(gamma=self._gamma, decay=config.decay, device=self._device)
        self._run = {**config.lasting(), **identity}
        self._out = make_folder(config.out)
        self._resume_path = self._out / "resume.safetensors"
        self._metrics_path = self._out / "metrics.jsonl"
        self.step = 0
        self._metrics_bytes = 0

    # One step.

    def _anchors(self, epoch: int, numbers: Sequence[int]) -> list[Any]:
        return [
            draw_anchors(
                self._spans[number],
                count=self.drafter.config.num_anchors,
                seed=self.config.seed,
                epoch=epoch,
                number=number,
            )
            for number in numbers
        ]

    def _loss(
        self, batch: StateBatch, blocks: Blocks, denominator: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the step's loss."""
        index_BA = blocks.anchor_index_BA.to(self._device)
        row_N1 = blocks.row_N.to(self._device)[:, None]
        index_NK = blocks.index_NK.to(self._device)
        tokens_BS = batch.tokens_BS
        hidden_BAKD = self.drafter.hidden(
            context_BSD=self.drafter.context(captured_BSC=batch.captured_BSC),
            anchor_tokens_BA=tokens_BS.gather(1, index_BA),
            anchor_index_BA=index_BA,
            tokens_BS=tokens_BS,
        )
        return training_loss(
            drafter=self.drafter,
            hidden_NKD=hidden_BAKD[blocks.real_BA.to(self._device)],
            previous_NK=tokens_BS[row_N1, index_NK],
            labels_NK=tokens_BS[row_N1, index_NK + 1],
            teacher_hidden_NKD=batch.hidden_BSD[row_N1, index_NK],
            weights_NK=blocks.weights_NK.to(self._device) * self._slot_K,
            mix=self._mix,
            denominator=denominator,
        )

    def train_step(self) -> dict[str, Any]:
        """One optimiser step; returns its metrics, summed over all processes."""
        epoch, numbers = self._plan.numbers(self.step)
        anchors = self._anchors(epoch, numbers)
        spans = [self._spans[number] for number in numbers]
        counts = torch.from_numpy(slot_counts(anchors, spans, gamma=self._gamma))
        denominator = (counts.to(self._device) * self._slot_K).sum()
        shares = micro_batches(
            [len(row) for row in anchors],
            micro_batch=self.config.micro_batch,
            rank=self._place.rank,
            world=self._place.world,
        )
        # Losses, then tokens, blocks and accepted length times blocks, then K acceptances.
        sums = torch.zeros(len(_SUMMED) + 3 + self._gamma, dtype=torch.float64)
        for places in shares:
            blocks = make_blocks(
                [anchors[i] for i in places], [spans[i] for i in places], gamma=self._gamma
            )
            batch = self.states.batch([numbers[i] for i in places])
            loss, parts = self._loss(batch, blocks, denominator)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.accumulate()
            sums += self._sums(parts, tokens=sum(spans[i].tokens for i in places), blocks=blocks)
        rate = self._schedule.rate(self.step)
        norm = self._optimiser.step(rate=rate)
        if dist.is_initialized():
            on_device = sums.to(self._device)
            dist.all_reduce(on_device)
            sums = on_device.cpu()
        self.step += 1
        values = sums.tolist()
        tokens, count, accepted = values[len(_SUMMED) : len(_SUMMED) + 3]
        report = {"step": self.step, "epoch": epoch, **dict(zip(_SUMMED, values, strict=False))}
        report |= {"accepted_length": accepted / count, "tokens": int(tokens), "blocks": int(count)}
        report["acceptance"] = (
            np.array(values[-self._gamma :]) / counts.clamp(min=1).numpy()
        ).tolist()
        report |= {"gradient_norm": norm, "learning_rate": rate}
        return report

    def _sums(self, parts: dict[str, Tensor], *, tokens: int, blocks: Blocks) -> Tensor:
        zero = torch.zeros(())
        count = len(blocks.row_N)
        scalars = [float(parts.get(name, zero)) for name in _SUMMED]
        length = float(parts.get("accepted_length", zero)) * count
        acceptance_K = torch.zeros(self._gamma, dtype=torch.float64)
        if "acceptance_K" in parts:
            acceptance_K = (parts["acceptance_K"].double() * parts["count_K"]).cpu()
        head = torch.tensor([*scalars, tokens, count, length], dtype=torch.float64)
        return torch.cat([head, acceptance_K])

    # Files.

    def save(self) -> None:
        """Write the resume file: whole or not at all. Every process must call it."""
        state = self._optimiser.state()
        if self._place.rank:
            return
        record = {"step": self.step, "metrics_bytes": self._metrics_bytes, "run": self._run}
        tensors = {name: tensor.cpu() for name, tensor in state.items()}
        with atomic_write(self._resume_path, "wb") as file:
            file.write(save(tensors, metadata={"resume": json.dumps(record)}))

    def resume(self) -> None:
        """Go back to the resume file, if there is one; it must be of this run."""
        if not self._resume_path.exists():
            self._optimiser.broadcast()
            return
        where = str(self._resume_path)
        try:
            with safe_open(self._resume_path, framework="pt") as file:
                record = json.loads(file.metadata()["resume"])
                check_same_run(record["run"], self._run, where=where)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._optimiser.restore(tensors)
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{where}: not a resume file of this trainer ({error}); remove it to begin anew"
            ) from None
        self.step, self._metrics_bytes = record["step"], record["metrics_bytes"]

    def _open_metrics(self) -> TextIO:
        """The metrics file, without the lines of steps that will be made again."""
        try:
            self._metrics_path.touch()
            if self._metrics_path.stat().st_size < self._metrics_bytes:
                raise ValueError(f"{self._metrics_path}: lines are missing; restore or remove it")
            os.truncate(self._metrics_path, self._metrics_bytes)
            return open(self._metrics_path, "a", encoding="utf-8")
        except OSError as error:
            raise os_problem("write", self._metrics_path, error) from None

    # The run.

    def run(self, *, quiet: bool = False, about: str = "") -> Path:
        """Train to the end and export; returns the checkpoint's folder. ``about`` is said first."""
        self.resume()
        if about and not quiet:
            print(about, file=sys.stderr)
        if self._place.rank:
            while self.step < self.steps:
                self.train_step()
                self._export_if_due()
                if self._saves():
                    self.save()
            return self._folder()
        board = _board(self._out) if self.config.tensorboard else None
        with (
            self._open_metrics() as file,
            tqdm(total=self.steps, initial=self.step, desc=self.config.kind, disable=quiet) as bar,
        ):
            while self.step < self.steps:
                started = time.perf_counter()
                report = self.train_step()
                report["tokens_per_s"] = report["tokens"] / (time.perf_counter() - started)
                if self._device.type == "cuda":
                    report["peak_bytes"] = torch.cuda.max_memory_allocated(self._device)
                self._metrics_bytes += file.write(json.dumps(report) + "\n")
                file.flush()
                if board is not None:
                    _to_board(board, report)
                bar.update()
                bar.set_postfix(_shown(report), refresh=False)
                self._export_if_due()
                if self._saves():
                    self.save()
        if board is not None:
            board.close()
        if not self._folder().exists():
            self._export(self._folder())
        return self._folder()

    def _saves(self) -> bool:
        return self.step % self.config.save_every == 0 or self.step == self.steps

    def _folder(self) -> Path:
        return self._out / f"step_{self.step}"

    def _export_if_due(self) -> None:
        every = self.config.export_every
        due = every and self.step % every == 0 and self.step < self.steps
        if due and not self._place.rank and not self._folder().exists():
            self._export(self._folder())


def _shown(report: dict[str, Any]) -> dict[str, str]:
    names = {"loss": "total", "ce": "ce", "l1": "tv", "conf": "confidence"}
    shown = {name: f"{report[key]:.3f}" for name, key in names.items()}
    return shown | {
        "accepted": f"{report['accepted_length']:.2f}",
        "tok/s": f"{report['tokens_per_s']:,.0f}",
    }


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard is set but not installed; pip install tensorboard") from None
    return SummaryWriter(str(folder / "tensorboard"))


def _to_board(board: Any, report: dict[str, Any]) -> None:
    for name, value in report.items():
        if isinstance(value, int | float) and name != "step":
            board.add_scalar(name, value, report["step"])
