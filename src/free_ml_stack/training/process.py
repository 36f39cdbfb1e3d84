"""This process's place among the processes of one training run, and its device."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from free_ml_stack.errors import StackError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from free_ml_stack.project.settings import Settings


T = TypeVar("T")
PORT = "port of the first process"
MEETING, CONNECTING, PAUSE = 300, 5, 0.05  # seconds: for all to come, for a connection, before another look
# Never freed: torch would wait for the group's threads while it holds the lock that they may be waiting for (seen in
# one of 40 runs whose other process was killed), and neither would go on.
_left: list[object] = []


@dataclass(frozen=True)
class Process:
    """Describe this process among those that train together: `rank` of `size`, with its `device`.

    torchrun sets both; `rank` 0 writes files and reports. Alone, `size` is 1.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def __str__(self) -> str:
        return f"{self.size} {'process' if self.size == 1 else 'processes'} on {self.device.type}"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def number_format(self, name: str) -> torch.dtype:
        """Return the dtype of the forward pass: `auto`, `float32`, `bfloat16` or `float16`.

        `auto` is bfloat16 on a GPU that computes in it, else float32.
        """
        if name == "auto":
            fast = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float32
        kind: torch.dtype = getattr(torch, name)
        return kind

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return `model` as one whose gradients are averaged over all processes; alone, `model` itself."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True)

    def mine(self, rows: Any) -> Any:
        """Return this process's share of `rows` (n, …), an array or a tensor: every `size`-th from `rank` on."""
        return rows[self.rank :: self.size]

    def agree(self, value: T) -> T:
        """Return the first process's value on each of them, once all have called this."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def first_then_all(self, work: Callable[[], T]) -> T:
        """What `work` returns: done by one process of each machine, then by the others, who find its files."""
        result = work() if self.local_rank == 0 else None
        self.agree("")
        return work() if result is None else result

    def any(self, mine: bool) -> bool:
        """Return, on each process, whether `mine` is true on any of them."""
        return bool(self.total(torch.tensor(float(mine), device=self.device)).item())

    def lost(self, error: BaseException) -> bool:
        """Whether an error tells that another process is gone; gloo's have no type of their own."""
        told = isinstance(error, distributed.DistError) or "gloo/" in str(error)
        return self.size > 1 and isinstance(error, RuntimeError) and told

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all processes, on each of them; `values` itself is overwritten."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values


@contextmanager
def join(settings: "Settings", device: str, threads: int) -> Iterator[Process]:
    """Take this process's place as the launcher's variables give it (torchrun sets them), and leave in the end.

    `device` is auto, cpu, cuda or mps; `threads` are CPU threads, 0 for torch's choice.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen = choose_device(device, settings.local_rank)
    if settings.world_size == 1:
        yield Process(chosen)
        return
    store = meet(settings)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=settings.rank, world_size=settings.world_size)
    _left.append(distributed.group.WORLD)
    try:
        yield Process(chosen, settings.rank, settings.world_size, settings.local_rank)
    finally:
        distributed.destroy_process_group()


def meet(settings: "Settings") -> "Store":
    """The store in which the processes tell each other where they listen; one of their own where torchrun has one.

    torchrun keeps its store over a restart, and in it where the processes listened that are dead by now. So the first
    process opens a new one and leaves only its port there; to an old port nobody answers, and it is read again.
    Raises StackError where the first process does not come.
    """
    from torch._C._distributed_c10d import TCPStore  # where its types are told
    from torch.distributed.rendezvous import rendezvous

    shared: Store = next(rendezvous("env://"))[0]
    if not settings.restartable:
        return shared
    if settings.rank == 0:
        own = TCPStore(settings.master, 0, is_master=True, wait_for_workers=False)
        shared.set(PORT, str(own.port))
        return own
    end = time.monotonic() + MEETING
    while time.monotonic() < end:
        port = int(shared.get(PORT))
        try:
            socket.create_connection((settings.master, port), timeout=CONNECTING).close()  # refused at once by the dead
            found = TCPStore(settings.master, port, timeout=timedelta(seconds=CONNECTING))
        except (OSError, distributed.DistError):
            time.sleep(PAUSE)
            continue
        found.set_timeout(timedelta(seconds=MEETING))
        return found
    raise StackError(f"the first process does not answer at {settings.master} after {MEETING} seconds")


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `name` means here; StackError if this machine has none such."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        raise StackError(f"device {name}: not on this machine; use --device cpu or auto")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)
