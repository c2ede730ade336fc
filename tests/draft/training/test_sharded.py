"""Optimiser state in parts: what several processes step to is what one does, resumable by any."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from sglang_dspark.draft.training.optim import FlatAdamW

STEPS = 5


def module(kinds: str) -> nn.Module:
    """31 numbers: no multiple of the processes; in one dtype, or in two."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.Linear(3, 2, bias=False))
    if kinds == "bfloat16":
        layers = layers.to(torch.bfloat16)
    if kinds == "mixed":
        layers[0] = layers[0].to(torch.bfloat16)
    return layers


def steps(layers: nn.Module, first: int, last: int, *, rank: int, world: int) -> FlatAdamW:
    """Steps whose gradients are the same sum however they are shared out."""
    optimiser = FlatAdamW(layers.parameters(), weight_decay=0.01, betas=(0.9, 0.95), clip=0.5)
    optimiser.broadcast()
    _go_on(optimiser, layers, first, last, rank=rank, world=world)
    return optimiser


def _go_on(
    optimiser: FlatAdamW, layers: nn.Module, first: int, last: int, *, rank: int, world: int
) -> None:
    for step in range(first, last):
        for piece in range(4):
            if piece % world != rank:
                continue
            random = torch.Generator().manual_seed(100 * step + piece)
            for parameter in layers.parameters():
                noise = torch.randn(parameter.shape, generator=random)
                parameter.grad = noise.to(parameter.dtype)
            optimiser.accumulate()
        optimiser.step(rate=1e-2)


def process(rank: int, world: int, port: int, kinds: str, folder: str, stored: Any) -> None:
    """One of several; the first writes what came out."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    layers = module(kinds)
    if rank:  # the first one's weights are everybody's
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.zero_()
    optimiser = steps(layers, 0, 0, rank=rank, world=world)
    if stored is not None:
        optimiser.restore(stored)
    _go_on(optimiser, layers, 0 if stored is None else STEPS, STEPS * 2, rank=rank, world=world)
    state = optimiser.state()
    weights = [p.detach().clone() for p in layers.parameters()]
    torch.save({"state": state, "weights": weights}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def shared(world: int, kinds: str, folder: Path, stored: Any = None) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    arguments = (world, port, kinds, str(folder), stored)
    mp.spawn(process, args=arguments, nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.law
@pytest.mark.parametrize("kinds", ["float32", "mixed"])
def test_processes_step_to_what_one_does_and_go_on_from_its_file(
    kinds: str, tmp_path: Path
) -> None:
    layers = module(kinds)
    alone = steps(layers, 0, STEPS, rank=0, world=1)
    half = {name: tensor.clone() for name, tensor in alone.state().items()}
    _go_on(alone, layers, STEPS, 2 * STEPS, rank=0, world=1)
    wanted = [p.detach() for p in layers.parameters()]
    for name, stored in (("fresh", None), ("resumed", half))[: 2 if kinds == "mixed" else 1]:
        ranks = shared(2, kinds, tmp_path / name, stored)
        assert ranks[1]["state"] == {}
        for rank in ranks:
            for mine, theirs in zip(rank["weights"], wanted, strict=True):
                assert mine.dtype == theirs.dtype
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        for key, tensor in alone.state().items():
            torch.testing.assert_close(ranks[0]["state"][key], tensor, rtol=0, atol=1e-5)
