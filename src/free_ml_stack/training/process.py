"""Distributed training: rank, device and collective operations of this process."""

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
RENDEZVOUS, CONNECT, POLL = 300, 5, 0.05  # seconds: timeout for all processes, for a connection, between attempts
# Process groups are never freed: torch can deadlock when it joins their threads (in 1 of 40 runs whose other process
# was killed).
_process_groups: list[object] = []


@dataclass(frozen=True)
class Process:
    """Describe this process in distributed training: its `rank` among `size` processes, and its `device`.

    torchrun sets rank and size. Rank 0 writes files and reports. Without torchrun, `size` is 1.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def __str__(self) -> str:
        return f"{self.size} {'process' if self.size == 1 else 'processes'} on {self.device.type}"

    @property
    def first(self) -> bool:
        """Return whether this process has rank 0, which writes files and reports."""
        return self.rank == 0

    def number_format(self, name: str) -> torch.dtype:
        """Return the dtype of the forward pass for `auto`, `float32`, `bfloat16` or `float16`.

        `auto` is bfloat16 on a GPU with native support for it, otherwise float32.
        """
        if name == "auto":
            fast = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float32
        kind: torch.dtype = getattr(torch, name)
        return kind

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap `model` in DistributedDataParallel; return `model` itself if there is only one process."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True)

    def mine(self, rows: Any) -> Any:
        """Return this process's share of `rows` (n, …), an array or tensor: every `size`-th row, starting at `rank`."""
        return rows[self.rank :: self.size]

    def agree(self, value: T) -> T:
        """Broadcast the first process's value; all processes must call this."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def first_then_all(self, work: Callable[[], T]) -> T:
        """Run `work` in one process of each machine, then in the others, which reuse its files; return the result."""
        result = work() if self.local_rank == 0 else None
        self.agree("")
        return work() if result is None else result

    def any(self, mine: bool) -> bool:
        """Return whether `mine` is true in any process."""
        return bool(self.total(torch.tensor(float(mine), device=self.device)).item())

    def is_peer_failure(self, error: BaseException) -> bool:
        """Return whether an error means that another process has died; gloo raises plain RuntimeError."""
        communication = isinstance(error, distributed.DistError) or "gloo/" in str(error)
        return self.size > 1 and isinstance(error, RuntimeError) and communication

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over all processes, in place; return them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values


@contextmanager
def join(settings: "Settings", device: str, threads: int) -> Iterator[Process]:
    """Join the process group that torchrun's environment variables describe, and leave it at the end.

    `device` is auto, cpu, cuda or mps; `threads` is the number of CPU threads, 0 for torch's default.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen = choose_device(device, settings.local_rank)
    if settings.world_size == 1:
        yield Process(chosen)
        return
    store = rendezvous_store(settings)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=settings.rank, world_size=settings.world_size)
    _process_groups.append(distributed.group.WORLD)
    try:
        yield Process(chosen, settings.rank, settings.world_size, settings.local_rank)
    finally:
        distributed.destroy_process_group()


def rendezvous_store(settings: "Settings") -> "Store":
    """Return the store for the rendezvous of the processes; under torchrun, a new one for each restart.

    torchrun's store survives a restart together with the addresses of processes that have died. Therefore the first
    process opens a store of its own and publishes only its port in torchrun's; a port that refuses connections is
    read again. Raises StackError if the first process is not reachable in time.
    """
    from torch._C._distributed_c10d import TCPStore  # the typed import
    from torch.distributed.rendezvous import rendezvous

    shared: Store = next(rendezvous("env://"))[0]
    if not settings.restartable:
        return shared
    if settings.rank == 0:
        own = TCPStore(settings.master, 0, is_master=True, wait_for_workers=False)
        shared.set(PORT, str(own.port))
        return own
    end = time.monotonic() + RENDEZVOUS
    while time.monotonic() < end:
        port = int(shared.get(PORT))
        try:
            # fails immediately if the process has died
            socket.create_connection((settings.master, port), timeout=CONNECT).close()
            found = TCPStore(settings.master, port, timeout=timedelta(seconds=CONNECT))
        except (OSError, distributed.DistError):
            time.sleep(POLL)
            continue
        found.set_timeout(timedelta(seconds=RENDEZVOUS))
        return found
    raise StackError(f"no answer from the first process at {settings.master} after {RENDEZVOUS} seconds")


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the torch device for `name`. Raises StackError if this machine does not have it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in available if available[kind])
    if not available[name]:
        raise StackError(f"device {name} is not available on this machine; use --device cpu or auto")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)
