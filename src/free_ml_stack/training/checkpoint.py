"""Checkpoints in the background, and training that goes on from them as if never stopped."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from free_ml_stack.console import display_path, say
from free_ml_stack.errors import PreemptedError, StackError
from free_ml_stack.hub.pretrained import start
from free_ml_stack.training.process import Process
from free_ml_stack.training.snapshot import (
    FILES,
    LOG,
    STATE,
    TENSORS,
    DamagedCheckpointError,
    check,
    clear,
    parsed,
    serialized,
    whole,
    write,
)
from free_ml_stack.training.state import copied, generators, joined, restore_generators, split

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TOGETHER = 8  # steps after which processes that train together ask each other whether to stop
GRACE = 15.0  # seconds that a store has when told to stop: who stops a machine waits for 30

Found = tuple[str, dict[str, bytes]]  # a checkpoint's name and its files


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


class Checkpoints:
    """The checkpoints of one run: the newest few on disk, and copied to a store, both in the background.

    Each holds the parts as they are, those that did best, the random generators, and the record so far. A disk or
    a store that fails, is full or is slow costs checkpoints, never the run.
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
        process: Process | None = None,
        fresh: bool = False,
        weights: Callable[[str], Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        self.folder, self.log, self.config = folder, log, dict(config)
        self.fresh = fresh  # whether there can't be any yet, so that no store needs to be asked
        self.weights = weights
        self.seconds, self.steps, self.keep, self.store = seconds, steps, keep, store
        self.process = process or Process(torch.device("cpu"))
        self.parts: dict[str, Stateful] = {}
        self.at = Position()
        self.best_states: dict[str, Any] = {}
        self.stopping = False
        self.started = self.saved_at = time.monotonic()
        self.spent = 0.0  # seconds of training before this process
        self.buffers: dict[str, torch.Tensor] = {}
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.sending: Future[None] | None = None
        self.written = self.sent = ""  # the newest name on disk, and the one that the store has or is being given
        self.warned: set[str] = set()

    def resume(self, **parts: Stateful) -> Position:
        """Restore `parts`, and the random generators, from the newest whole checkpoint.

        A part is anything with `state_dict` and `load_state_dict`: a model, an optimizer, a schedule, a scaler. The
        first process reads the checkpoint, from disk or from the store, and hands it to the others. Returns the
        position to continue from, which the loop updates: `epoch` and `batch` are the next ones, from 0; `step` counts
        the steps done.
        Raises StackError, naming the field, if the run was started with another configuration.
        """
        self.parts = parts
        found = self.process.agree(self._newest() if self.process.first and not self.fresh else None)
        if found is None:
            self.log.restore(b"")
            return self.at
        state, tensors, record = parsed(*found)
        same(state["config"], self.config)
        self.at = Position(**state["at"])
        self.spent = state["spent"]
        for name, part in self.parts.items():
            part.load_state_dict(joined(state["parts"][name], tensors))
        self.best_states = joined(state["best"], tensors)
        restore_generators(joined(state["random"], tensors))
        self.log.restore(record)
        if self.process.first:
            say(f"Going on after step {self.at.step}.")
        return self.at

    def load_pretrained(self, model: torch.nn.Module, place: str) -> None:
        """Start `model` from weights that exist; do nothing for an empty `place`.

        `place` is hf://USER/NAME[@REVISION], a run or published model of this project, a folder, or a .safetensors
        file. A tensor is taken where the model has one of the same name, or of that name after one prefix, and of the
        same shape; those that are not taken are listed. Raises StackError where there are no weights or none fits.
        """
        if place and self.weights:
            say(start(model, self.weights(place), place))

    def step(self) -> None:
        """Save a checkpoint if one is due; call it after every optimizer step.

        One is due `checkpoint_seconds` after the last, or each `checkpoint_steps` steps. Raises PreemptedError, with a
        checkpoint written, once SIGTERM or SIGINT was received; in a run of many processes all of them raise it.
        """
        if self._told_to_stop():
            self.finish()
            lost = self.process.first and self.written != self._name()
            raise PreemptedError(f"stopped after step {self.at.step}{', without a checkpoint' if lost else ''}")
        due = time.monotonic() - self.saved_at >= self.seconds
        if due or (self.steps and self.at.step % self.steps == 0):
            self.save()

    def elapsed(self) -> float:
        """Return the seconds of training so far, those before a restart included."""
        return self.spent + time.monotonic() - self.started

    def mark_best(self, name: str) -> None:
        """Keep a copy of the state of part `name` as the best so far; every later checkpoint holds it."""
        self.best_states[name] = copied(self.parts[name].state_dict())

    def best(self, name: str) -> dict[str, Any]:
        """Return the state that part `name` had when `mark_best` was called last. Raises StackError if it never was."""
        if name not in self.best_states:
            raise StackError("training diverged: no validation loss was finite; try a lower learning rate")
        found: dict[str, Any] = self.best_states[name]
        return found

    def save(self) -> None:
        """Stage this moment and write it in the background; left out while the last one is still being written."""
        if not self.process.first or (self.writing and not self.writing.done()):
            return
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "at": asdict(self.at),
            "spent": self.elapsed(),
            "config": self.config,
            "parts": {name: split(part.state_dict(), tensors, name) for name, part in self.parts.items()},
            "best": split(self.best_states, tensors, "best"),
            "random": split(generators(), tensors, "random"),
        }
        self._stage(tensors)
        files = {STATE: json.dumps(state).encode(), LOG: self.log.content()}
        self.saved_at = time.monotonic()
        self.writing = self.writer.submit(self._write, self._name(), files, set(tensors))

    def finish(self) -> None:
        """Write a checkpoint of this moment and wait until disk and store have it; call it after the last step.

        After SIGTERM it waits 15 seconds at most for the store: the disk has it, and the store an older one.
        """
        if self.writing:
            self.writing.result()
        self.save()
        self.writer.shutdown()
        if self._sent_in_time() and self.written != self.sent:
            self._send(self.written)
            self._sent_in_time()

    def _name(self) -> str:
        return f"step-{self.at.step:09d}"

    def _sent_in_time(self) -> bool:
        """Wait for the upload that is under way; whether it has ended."""
        told: float | None = None
        while self.sending and wait([self.sending], timeout=0.1).not_done:
            if not self.stopping:
                continue
            told = told or time.monotonic()
            if time.monotonic() - told > GRACE:
                say(f"The store has not taken the last checkpoint yet; it is in {display_path(self.folder)}.")
                return False
        return True

    def _told_to_stop(self) -> bool:
        """Whether a signal came; to processes that train together it may come at different steps."""
        if self.process.size == 1:
            return self.stopping
        return self.at.step % TOGETHER == 0 and self.process.any(self.stopping)

    def _stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors into buffers that are used again, so that training may go on meanwhile."""
        for name, tensor in tensors.items():
            buffer = self.buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self.buffers[name] = buffer
            buffer.copy_(tensor.detach())

    def _write(self, name: str, files: dict[str, bytes], tensors: set[str]) -> None:
        staged = {TENSORS: serialized({key: self.buffers[key] for key in tensors})}
        try:
            write(self.folder / name, {**staged, **files})
            self.written = name
            for old in self._folders()[: -self.keep]:
                if old.name != self.sent or not self.sending or self.sending.done():
                    shutil.rmtree(old)
        except OSError as error:
            self._warn("A checkpoint could not be written", error)
            return
        if not self.sending or self.sending.done():
            self._send(name)

    def _send(self, name: str) -> None:
        """Begin to copy a checkpoint to the store; while that lasts, newer ones stay on disk alone."""
        if self.store is not None:
            self.sending = Future()
            # A daemon: a store that hangs does not keep a program that has ended.
            threading.Thread(target=self._upload, args=(name, self.sending), daemon=True).start()
        self.sent = name

    def _upload(self, name: str, sending: "Future[None]") -> None:
        assert self.store is not None
        try:
            for file in FILES:
                self.store.put_file(str(self.folder / name / file), f"{name}/{file}")
            for old in self._stored()[: -self.keep]:
                self.store.rm(old, recursive=True)
        except Exception as error:  # each kind of store has errors of its own, and none may end the run
            self.sent = ""
            self._warn("The store did not take a checkpoint", error)
        finally:
            sending.set_result(None)

    def _warn(self, what: str, error: Exception) -> None:
        if what not in self.warned:
            say(f"{what} ({error}); training goes on, and the next one is tried.")
        self.warned.add(what)

    def _newest(self) -> Found | None:
        """The newest whole checkpoint, from disk or the store; damaged ones are named and, on disk, removed."""
        clear(self.folder)
        local = self._newest_here()
        try:
            return self._newest_stored(local[0] if local else "") or local
        except Exception as error:  # each kind of store has errors of its own
            if not local:
                raise
            say(f"The store can't be asked for a newer checkpoint ({error}); using the one on disk.")
            return local

    def _newest_here(self) -> Found | None:
        for folder in reversed(self._folders()):
            try:
                return folder.name, whole(folder)
            except DamagedCheckpointError as error:
                say(f"{error}; using the one before it")
                shutil.rmtree(folder, ignore_errors=True)
        return None

    def _newest_stored(self, local: str) -> Found | None:
        """The newest whole checkpoint of the store, now on disk too; None if there is none newer than `local`."""
        for name in reversed(self._stored()):
            if name <= local:
                break
            try:
                files = self._fetched(name)
            except DamagedCheckpointError as error:
                say(f"{error} in the store; using the one before it")
                continue
            try:
                write(self.folder / name, files)
            except OSError as error:
                self._warn("A checkpoint could not be written", error)
            return name, files
        return None

    def _fetched(self, name: str) -> dict[str, bytes]:
        """The files of a checkpoint in the store; DamagedCheckpointError if they are not what was written."""
        assert self.store is not None
        try:
            files: dict[str, bytes] = {file: self.store.cat_file(f"{name}/{file}") for file in FILES}
        except FileNotFoundError:
            raise DamagedCheckpointError(f"checkpoint {name} is not whole") from None
        check(name, files)
        return files

    def _stored(self) -> list[str]:
        if self.store is None or not self.store.exists(""):
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in self.store.ls("", detail=False))
        return sorted(name for name in names if name.startswith("step-"))

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*[0-9]"))


def same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise StackError, naming the field, where a run was started with another configuration."""
    for name in now.keys() | before.keys():
        if now.get(name) != before.get(name):
            raise StackError(
                f"{name} was {before.get(name)!r} when this run started and is {now.get(name)!r} now; "
                "set it back to resume, or start a new run"
            )
