"""Checkpoints that appear whole or not at all, and training that goes on from them as if never stopped."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load, save

from . import StackError
from .console import say
from .state import generators, joined, restore_generators, split

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

STATE, TENSORS, SUMS, LOG = "state.json", "state.safetensors", "sums.json", "metrics.jsonl"
FILES = (TENSORS, STATE, LOG, SUMS)  # the sums last: a folder without them is no checkpoint


class Stateful(Protocol):
    """Anything with a state: modules, optimizers, schedules, scalers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Log(Protocol):
    """A record that grows with training and must end where the checkpoint does."""

    def content(self) -> bytes: ...

    def restore(self, content: bytes) -> None: ...


@dataclass
class Position:
    """Where training is: `epoch` and `batch` are the next ones, `step` counts the steps done."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("inf")
    stale: int = 0


class Interrupted(StackError):  # noqa: N818 - an order, not a fault
    """Training was told to stop, and has written a checkpoint to go on from."""


class DamagedCheckpoint(StackError):  # noqa: N818 - it is named, not raised to the user
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The checkpoints of one run: the newest few on disk, written in the background, and copied to a store.

    Each holds the parts as they are, those that did best, the random generators, and the record so far.
    """

    def __init__(
        self,
        folder: Path,
        log: Log,
        config: Mapping[str, Any],
        seconds: float = 30.0,
        steps: int = 0,
        keep: int = 2,
        store: "AbstractFileSystem | None" = None,
        writes: bool = True,
    ) -> None:
        self.folder, self.log, self.config = folder, log, dict(config)
        self.seconds, self.steps, self.keep, self.store, self.writes = seconds, steps, keep, store, writes
        self.parts: dict[str, Stateful] = {}
        self.at = Position()
        self.best_states: dict[str, Any] = {}
        self.stopping = False
        self.saved_at = time.monotonic()
        self.buffers: dict[str, torch.Tensor] = {}
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.warned = False

    def resume(self, parts: Mapping[str, Stateful]) -> Position:
        """Put `parts` (and the random generators) where the newest whole checkpoint left them.

        Returns the position to go on from; the start if there is no checkpoint. Raises StackError, naming the
        field, if the run was started with another configuration.
        """
        self.parts = dict(parts)
        if self.writes:
            self._fetch()
        for folder in reversed(self._folders()):
            try:
                state, tensors, record = read(folder)
            except DamagedCheckpoint as error:
                say(f"{error}; using the one before it")
                continue
            self._refuse_other(state["config"])
            self.at = Position(**state["at"])
            for name, part in self.parts.items():
                part.load_state_dict(joined(state["parts"][name], tensors))
            self.best_states = joined(state["best"], tensors)
            restore_generators(joined(state["random"], tensors))
            self.log.restore(record)
            return self.at
        self.log.restore(b"")
        return self.at

    def step(self) -> None:
        """Save if it is time to; raises Interrupted once a checkpoint is written, if told to stop."""
        if self.stopping:
            self.finish()
            raise Interrupted(f"stopped after step {self.at.step}")
        due = time.monotonic() - self.saved_at >= self.seconds
        if due or (self.steps and self.at.step % self.steps == 0):
            self.save()

    def mark_best(self, name: str) -> None:
        """Keep the state of part `name` as the best so far; it goes into every checkpoint from now on."""
        state = self.parts[name].state_dict()
        self.best_states[name] = {key: value.detach().clone() for key, value in state.items()}

    def best(self, name: str) -> dict[str, Any]:
        """The state that part `name` had when it was marked last."""
        found: dict[str, Any] = self.best_states[name]
        return found

    def save(self) -> None:
        """Stage this moment and write it in the background; left out while the last one is still being written."""
        if not self.writes or (self.writing and not self.writing.done()):
            return
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "at": asdict(self.at),
            "config": self.config,
            "parts": {name: split(part.state_dict(), tensors, name) for name, part in self.parts.items()},
            "best": split(self.best_states, tensors, "best"),
            "random": split(generators(), tensors, "random"),
        }
        self._stage(tensors)
        files = {STATE: json.dumps(state).encode(), LOG: self.log.content()}
        self.saved_at = time.monotonic()
        self.writing = self.writer.submit(self._write, f"step-{self.at.step:09d}", files, set(tensors))

    def finish(self) -> None:
        """Write a checkpoint of this moment, and wait until it is on disk and in the store."""
        if self.writing:
            self.writing.result()
        self.save()
        if self.writing:
            self.writing.result()
        self.writer.shutdown()

    def _stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors into buffers that are used again, so that training may go on meanwhile."""
        for name, tensor in tensors.items():
            buffer = self.buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = self.buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            buffer.copy_(tensor.detach())

    def _write(self, name: str, files: dict[str, bytes], tensors: set[str]) -> None:
        files[TENSORS] = save({key: self.buffers[key] for key in tensors})
        try:
            write(self.folder / name, files)
            for old in self._folders()[: -self.keep]:
                shutil.rmtree(old)
            self._upload(name)
        except OSError as error:
            if not self.warned:
                say(f"A checkpoint could not be kept ({error}); training goes on.")
            self.warned = True

    def _upload(self, name: str) -> None:
        if self.store is None:
            return
        for file in FILES:
            self.store.put_file(str(self.folder / name / file), f"{name}/{file}")
        for old in self._stored()[: -self.keep]:
            self.store.rm(old, recursive=True)

    def _fetch(self) -> None:
        """Bring the store's newest checkpoint here where it is newer than those on disk."""
        stored = self._stored() if self.store else []
        local = self._folders()
        if self.store is None or not stored or (local and local[-1].name >= stored[-1]):
            return
        for name in stored[-self.keep :]:
            files = {
                file: self.store.cat_file(f"{name}/{file}")
                for file in FILES
                if self.store.exists(f"{name}/{file}")
            }
            if SUMS in files:
                write(self.folder / name, files)

    def _stored(self) -> list[str]:
        if self.store is None or not self.store.exists(""):
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in self.store.ls("", detail=False))
        return sorted(name for name in names if name.startswith("step-"))

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*[0-9]"))

    def _refuse_other(self, config: Mapping[str, Any]) -> None:
        for name in self.config.keys() | config.keys():
            if self.config.get(name) != config.get(name):
                raise StackError(
                    f"{name} was {config.get(name)!r} when this run started and is {self.config.get(name)!r} now; "
                    "set it back to resume, or start a new run"
                )


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a checkpoint under a temporary name on the same file system, synced, then give it its own.

    Sums are made unless they are among `files`. A crash at any moment leaves the old folder or the new one.
    """
    if folder.exists():
        return
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in {**files, SUMS: files.get(SUMS) or json.dumps(sums).encode()}.items():
        with (scratch / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    scratch.rename(folder)
    if hasattr(os, "O_DIRECTORY"):  # Windows keeps names of folders safe by itself
        parent = os.open(folder.parent, os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    """State, tensors and record of a checkpoint; DamagedCheckpoint if a file is missing, torn or changed."""
    try:
        sums = json.loads((folder / SUMS).read_bytes())
        files = {name: (folder / name).read_bytes() for name in (STATE, TENSORS, LOG)}
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder.name} is not whole ({error})") from None
    for name, content in files.items():
        if not isinstance(sums, dict) or hashlib.sha256(content).hexdigest() != sums.get(name):
            raise DamagedCheckpoint(f"checkpoint {folder.name}: {name} is not what was written")
    state: dict[str, Any] = json.loads(files[STATE])
    return state, load(files[TENSORS]), files[LOG]
