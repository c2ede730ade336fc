"""What a round of the worker lane asks of a device, counted on a CPU: no time is measured.

A server that starts with ``watch`` called (tests start one so) appends a JSON line for every round
and every prefill to the file named by ``AUDIT_FILE``: operators launched one by one, places where
the host waits for the device, and tensors allocated, by part of the round. ``test_round_audit``
among the tests of the worker asserts that none of it grows with the requests, and holds it against
``results/round_audit.json``.

Which tensors would be on a device is followed by name: what is made with a device, or from such a
tensor, is; what comes from ``.cpu()``, numpy or a list is not. Three places are counted apart:

- ``forward``: the models' own passes, which CUDA graphs replay; they are told, and not counted
- ``kernels``: the PyTorch versions of what runs in Triton on a GPU; calls are counted, each of
  which is so many launches there
- ``sglang``: how SGLang describes a batch to its runners, samples after a prefill, and relays
  lengths; on a CPU it finds positions request by request, which is a kernel on a GPU

A norm counts as one operator, as it is on a GPU. Views launch nothing and are not counted.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

FILE = "AUDIT_FILE"

WAITS = frozenset(
    {
        *("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"),
        *("__contains__", "nonzero", "argwhere", "masked_select", "unique", "is_nonzero"),
        *("equal", "allclose"),
    }
)
"""Functions that give the host a number, or a shape that depends on one."""


class Round:
    """The counts of one round, by part and place."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.part, self.place, self.fused = "begin", "ours", False
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.waits: list[str] = []
        self.host: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.shape = ""

    def add(self, what: str) -> None:
        """One more of it, here."""
        self.counts[self.part, self.place, what] += 1

    def wait(self, what: str) -> None:
        """The host waits for the device here."""
        if self.place in ("ours", "sglang"):
            self.waits.append(f"{self.part}: {what}" + " in SGLang" * (self.place == "sglang"))

    def told(self) -> dict[str, Any]:
        """As it is written."""
        parts: dict[str, dict[str, int]] = {}
        for (part, place, what), count in sorted(self.counts.items()):
            if place != "forward":
                name = what if place == "ours" else f"{place}_{what}"
                parts.setdefault(part, {})[name] = count
        return {
            "requests": self.requests,
            "shape": self.shape,
            "parts": parts,
            "host_waits": sorted(self.waits),
        }


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would be launched, and what is allocated for it."""

    def __init__(self, counted: Round) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operator below autograd."""
        found = func(*args, **(kwargs or {}))
        given = self.counted
        if given.fused or func.is_view or given.place in ("kernels", "forward"):
            return found
        before = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        new = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        for tensor in new:
            if _storage(tensor) not in before:
                given.add("allocations")
        if not func.__name__.startswith(
            ("empty", "detach", "alias", "lift_fresh", "_local_scalar")
        ):
            given.add("operators")
        return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Waits(TorchFunctionMode):
    """Follows which tensors are on the host, and counts where it would wait."""

    def __init__(self, counted: Round) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch's interface."""
        kwargs = kwargs or {}
        name, host = getattr(func, "__name__", ""), self.counted.host
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_host = [x in host and host[x] for x in given]
        moves = name == "to" and _names_device(args[1:], kwargs)
        if name in WAITS and given and not all(on_host):
            self.counted.wait(name)
        elif name in ("__getitem__", "__setitem__") and _by_mask(args, on_host):
            self.counted.wait("indexing by a mask")
        elif name == "repeat_interleave" and given and not all(on_host):
            if kwargs.get("output_size") is None and isinstance(args[-1], Tensor):
                self.counted.wait(name)
        elif name == "cpu" and not all(on_host):
            self.counted.wait("cpu")
        elif (moves and all(on_host) and not kwargs.get("non_blocking", False)) or (
            name in ("tensor", "as_tensor") and not given and kwargs.get("device") is not None
        ):
            self.counted.wait("blocking copy to the device")
        found = func(*args, **kwargs)
        if isinstance(found, Tensor):
            if any(found is x for x in given) and (name == "cpu" or moves):
                found = found.detach()  # on a device it would be another tensor
            if name == "cpu":
                host[found] = True
            elif moves:
                host[found] = False
            elif given:
                host[found] = all(on_host)
            else:
                host[found] = kwargs.get("device") is None
        return found


def _names_device(args: Any, kwargs: Any) -> bool:
    return kwargs.get("device") is not None or any(isinstance(x, str | torch.device) for x in args)


def _by_mask(args: Any, on_host: list[bool]) -> bool:
    """Whether the number of what is picked is known to the device alone."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    masks = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in index)
    fills = len(args) > 2 and not (isinstance(args[2], Tensor) and args[2].dim())
    return masks and not fills and not all(on_host)


@contextlib.contextmanager
def counting(counted: Round) -> Iterator[None]:
    """While the block runs, everything is counted."""
    original = torch.from_numpy

    def from_numpy(array: Any) -> Tensor:
        found = original(array)
        counted.host[found] = True
        return found

    torch.from_numpy = from_numpy  # type: ignore[assignment]
    try:
        with Waits(counted), Operators(counted):
            yield
    finally:
        torch.from_numpy = original


def watch() -> None:
    """From now on, each round of this process's worker is counted and written down."""
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sglang_dspark.runtime.kernels import head, rejection
    from sglang_dspark.runtime.worker.clock import PhaseClock
    from sglang_dspark.runtime.worker.worker import DSparkWorker

    now: list[Round] = []

    def within(owner: Any, name: str, place: str, call: str = "") -> None:
        """Count what happens inside that function at another place."""
        original = getattr(owner, name)
        bound = inspect.ismethod(original)
        function = original.__func__ if bound else original

        @functools.wraps(function)
        def inside(*args: Any, **given: Any) -> Any:
            if not now:
                return function(*args, **given)
            counted = now[-1]
            before = counted.place
            if before == "ours" or place == "forward":
                counted.place = place
                if call and place != "forward":
                    counted.add(call)
            try:
                return function(*args, **given)
            finally:
                counted.place = before

        setattr(owner, name, classmethod(inside) if bound else inside)

    within(ModelRunner, "forward", "forward", "passes")
    within(ForwardBatch, "init_new", "sglang")
    within(TpModelWorker, "forward_batch_generation", "sglang")
    within(head, "fill_slot", "kernels", "slots")
    within(rejection, "verify_chain_torch", "kernels", "acceptances")

    norm = RMSNorm.forward

    def one_operator(self: Any, *args: Any, **given: Any) -> Any:
        if not now or now[-1].fused:
            return norm(self, *args, **given)
        counted = now[-1]
        if counted.place == "ours":
            counted.add("operators")
            counted.add("allocations")
        counted.fused = True
        try:
            return norm(self, *args, **given)
        finally:
            counted.fused = False

    RMSNorm.forward = one_operator

    part = PhaseClock.part

    @contextlib.contextmanager
    def named(self: Any, name: str) -> Iterator[None]:
        if now:
            now[-1].part = name
        with part(self, name):
            yield

    PhaseClock.part = named  # type: ignore[method-assign]

    verify = DSparkWorker.verify

    def shaped(self: Any, *args: Any) -> Any:
        found = verify(self, *args)
        now[-1].shape = found.shape
        return found

    DSparkWorker.verify = shaped  # type: ignore[method-assign, assignment]

    for name in ("decode", "prefill"):
        setattr(DSparkWorker, name, _written(getattr(DSparkWorker, name), name, now))


def _written(step: Callable[..., Any], name: str, now: list[Round]) -> Callable[..., Any]:
    """The worker's ``step``, whose counts become a line of the file."""

    def counted(self: Any, batch: Any, on_publish: Callable[[Tensor], None] | None) -> Any:
        round_ = Round(len(batch.reqs))
        if name == "prefill":
            round_.part = round_.shape = name
        for attribute, value in vars(batch).items():
            if attribute.endswith("_cpu") and isinstance(value, Tensor):
                round_.host[value] = True
        now.append(round_)
        try:
            with counting(round_):
                found = step(self, batch, on_publish and _elsewhere(on_publish, round_))
        finally:
            now.pop()
        params = batch.reqs[0].sampling_params
        line = round_.told() | {
            "sampling": [params.temperature if params.top_k > 1 else 0.0, params.top_p],
        }
        with open(os.environ[FILE], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return found

    return counted


def _elsewhere(publish: Callable[[Tensor], None], counted: Round) -> Callable[[Tensor], None]:
    """The relay of overlap scheduling, which is SGLang's."""

    def published(lengths: Tensor) -> None:
        before, counted.place = counted.place, "sglang"
        try:
            publish(lengths)
        finally:
            counted.place = before

    return published
