"""Checkpoints saved in the background, and exact resumption of training from them."""

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
from free_ml_stack.hub.client import error_line
from free_ml_stack.hub.pretrained import start
from free_ml_stack.training.process import Process
from free_ml_stack.training.snapshot import (
    LOG,
    STATE,
    TENSORS,
    DamagedCheckpointError,
    parse,
    read_files,
    remove_incomplete,
    serialize,
    write,
)
from free_ml_stack.training.state import copy_tensors, flatten, generator_states, restore_generators, unflatten
from free_ml_stack.training.stored import StoredCheckpoints

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from free_ml_stack.tracking.run import Record

STOP_CHECK_STEPS = 8  # steps between two checks of all processes for a stop signal
SHOWN = 3  # fields in the message about a changed configuration
GRACE = 15.0  # seconds to wait for the store after a stop signal; preempted machines get 30

Found = tuple[str, dict[str, bytes]]  # name and files of a checkpoint


class Stateful(Protocol):
    """An object with a state: module, optimizer, scheduler, scaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class Position:
    """The position of training: the next `epoch` and `batch`, from 0, and the number of completed steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("inf")
    stale: int = 0


class Checkpoints:
    """Save the checkpoints of one run, in the background: the latest few on disk, with copies in a store.

    A checkpoint holds the current and the best states of the parts, the random generators, and the metrics record. A
    disk or store that fails, is full or is slow loses checkpoints but never stops the run.
    """

    def __init__(
        self,
        folder: Path,
        log: "Record",  # the metrics, truncated to the checkpoint on resumption
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
        self.fresh = fresh  # a new run: the store is not searched
        self.weights = weights
        self.seconds, self.steps, self.keep = seconds, steps, keep
        self.stored = None if store is None else StoredCheckpoints(folder, store, keep)
        self.process = process or Process(torch.device("cpu"))
        self.parts: dict[str, Stateful] = {}
        self.at = Position()
        self.best_states: dict[str, Any] = {}
        self.stopping = False
        self.started = self.saved_at = time.monotonic()
        self.spent = 0.0  # seconds of training before the last restart
        self.buffers: dict[str, torch.Tensor] = {}
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.sending: Future[None] | None = None
        self.written = self.sent = ""  # latest name on disk; in the store or being uploaded
        self.warned: set[str] = set()

    def resume(self, **parts: Stateful) -> Position:
        """Restore `parts` and the random generators from the latest complete checkpoint; return the position.

        A part is any object with `state_dict` and `load_state_dict`: a model, an optimizer, a scheduler, a scaler. The
        first process reads the checkpoint from disk or from the store and broadcasts it. The loop updates the returned
        position: the next `epoch` and `batch`, from 0, and the number of completed steps.

        Raises StackError, naming the field, if the run was started with another configuration.
        """
        self.parts = parts
        found = self.process.agree(self._latest() if self.process.first and not self.fresh else None)
        if found is None:
            self.log.restore(b"")
            return self.at
        state, tensors, record = parse(found[1])
        if changed := changed_fields(state["config"], self.config):
            raise StackError(f"this run was started with {changed}; restore this to resume, or start a new run")
        self.at = Position(**state["at"])
        self.spent = state["spent"]
        for name, part in self.parts.items():
            part.load_state_dict(unflatten(state["parts"][name], tensors))
        self.best_states = unflatten(state["best"], tensors)
        restore_generators(unflatten(state["random"], tensors))
        self.log.restore(record)
        if self.process.first:
            say(f"Resuming after step {self.at.step}.")
        return self.at

    def load_pretrained(self, model: torch.nn.Module, place: str) -> None:
        """Initialize `model` with pretrained weights; do nothing if `place` is empty.

        `place` is hf://USER/NAME[@REVISION], a run or published model of this project, a folder, or a .safetensors
        file. A tensor is loaded if its name, with or without one common prefix, and its shape match; the others are
        listed. Raises StackError if there are no weights or none match.
        """
        if place and self.weights:
            say(start(model, self.weights(place), place))

    def step(self) -> None:
        """Save a checkpoint if one is due; call this after every optimizer step.

        One is due every `checkpoint_seconds` seconds and every `checkpoint_steps` steps. After SIGTERM or SIGINT, saves
        a checkpoint and raises PreemptedError, in all processes of the run.
        """
        if self._stop_requested():
            self.finish()
            lost = self.process.first and self.written != self._name()
            raise PreemptedError(f"stopped after step {self.at.step}{', without a checkpoint' if lost else ''}")
        due = time.monotonic() - self.saved_at >= self.seconds
        if due or (self.steps and self.at.step % self.steps == 0):
            self.save()

    def elapsed(self) -> float:
        """Return the seconds of training so far, including those before restarts."""
        return self.spent + time.monotonic() - self.started

    def mark_best(self, name: str) -> None:
        """Copy the state of part `name` as the best one so far; later checkpoints contain it."""
        self.best_states[name] = copy_tensors(self.parts[name].state_dict())

    def best(self, name: str) -> dict[str, Any]:
        """Return the state of part `name` at the last `mark_best`. Raises StackError if there was none."""
        if name not in self.best_states:
            raise StackError("training diverged: no epoch had a finite validation loss; try a lower learning rate")
        found: dict[str, Any] = self.best_states[name]
        return found

    def save(self) -> None:
        """Copy the current state and write it in the background; skipped if the previous write has not finished."""
        if not self.process.first or (self.writing and not self.writing.done()):
            return
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "at": asdict(self.at),
            "spent": self.elapsed(),
            "config": self.config,
            "parts": {name: flatten(part.state_dict(), tensors, name) for name, part in self.parts.items()},
            "best": flatten(self.best_states, tensors, "best"),
            "random": flatten(generator_states(), tensors, "random"),
        }
        self._stage(tensors)
        files = {STATE: json.dumps(state).encode(), LOG: self.log.content()}
        self.saved_at = time.monotonic()
        self.writing = self.writer.submit(self._write, self._name(), files, set(tensors))

    def finish(self) -> None:
        """Save a final checkpoint and wait until it is on disk and in the store; call this after the last step.

        After SIGTERM, waits at most 15 seconds for the store, which may then hold an older checkpoint than the disk.
        """
        if self.writing:
            self.writing.result()
        self.save()
        self.writer.shutdown()
        if self._wait_for_upload() and self.written != self.sent:
            self._send(self.written, last=True)
            self._wait_for_upload()

    def _name(self) -> str:
        return f"step-{self.at.step:09d}"

    def _wait_for_upload(self) -> bool:
        """Wait for the current upload, after a stop signal for GRACE seconds; return whether it has finished."""
        since: float | None = None
        while self.sending and wait([self.sending], timeout=0.1).not_done:
            if not self.stopping:
                continue
            since = since or time.monotonic()
            if time.monotonic() - since > GRACE:
                say(f"Upload of the last checkpoint timed out; it is on disk in {display_path(self.folder)}.")
                return False
        return True

    def _stop_requested(self) -> bool:
        """Return whether to stop; several processes agree on the step, as signals may arrive at different ones."""
        if self.process.size == 1:
            return self.stopping
        return self.at.step % STOP_CHECK_STEPS == 0 and self.process.any(self.stopping)

    def _stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors into reusable buffers, so that training can continue during the write."""
        for name, tensor in tensors.items():
            buffer = self.buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self.buffers[name] = buffer
            buffer.copy_(tensor.detach())

    def _write(self, name: str, files: dict[str, bytes], tensors: set[str]) -> None:
        staged = {TENSORS: serialize({key: self.buffers[key] for key in tensors})}
        try:
            write(self.folder / name, {**staged, **files})
            self.written = name
            for old in self._folders()[: -self.keep]:
                if old.name != self.sent or not self.sending or self.sending.done():
                    shutil.rmtree(old)
        except OSError as error:
            self._warn("Writing a checkpoint failed", error)
            return
        if not self.sending or self.sending.done():
            self._send(name)

    def _send(self, name: str, last: bool = False) -> None:
        """Start the upload of a checkpoint; newer ones stay on disk only until it finishes."""
        self.sent = name
        if self.stored:
            self.sending = Future()
            # A daemon thread, so that a store that hangs does not block the exit of the program.
            threading.Thread(target=self._upload, args=(self.stored, name, last, self.sending), daemon=True).start()

    def _upload(self, stored: StoredCheckpoints, name: str, last: bool, sending: "Future[None]") -> None:
        try:
            if not stored.put(name, last):
                self.sent = ""
        except Exception as error:  # every file system has its own errors, and none may stop the run
            self.sent = ""
            if last:
                where = display_path(self.folder)
                say(f"Upload of the last checkpoint failed ({error_line(error)}); it is on disk in {where}.")
            else:
                self._warn("Uploading a checkpoint failed", error)
        finally:
            sending.set_result(None)

    def _warn(self, what: str, error: Exception) -> None:
        if what not in self.warned:
            say(f"{what} ({error_line(error)}); training continues, and the next checkpoint is tried.")
        self.warned.add(what)

    def _latest(self) -> Found | None:
        """Return the latest complete checkpoint, from disk or the store; report damaged ones and delete local ones."""
        remove_incomplete(self.folder)
        local = self._latest_local()
        try:
            return self._latest_stored(local[0] if local else "") or local
        except Exception as error:  # every file system has its own errors
            if not local:
                raise
            say(f"Cannot read checkpoints from the store ({error_line(error)}); using the one on disk.")
            return local

    def _latest_local(self) -> Found | None:
        for folder in reversed(self._folders()):
            try:
                return folder.name, read_files(folder)
            except DamagedCheckpointError as error:
                say(f"{error}; using the previous one")
                shutil.rmtree(folder, ignore_errors=True)
        return None

    def _latest_stored(self, local: str) -> Found | None:
        """Download the latest complete checkpoint of the store; return None if none is newer than `local`."""
        if not self.stored:
            return None
        for name in reversed(self.stored.names()):
            if name <= local:
                break
            try:
                files = self.stored.fetch(name)
            except DamagedCheckpointError as error:
                say(f"{error} in the store; using the previous one")
                continue
            try:
                write(self.folder / name, files)
            except OSError as error:
                self._warn("Writing a checkpoint failed", error)
            return name, files
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*[0-9]"))


def changed_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return three fields that differ between two configurations of a run, with both values; empty if none does."""
    changed = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    values = [f"{name} {json.dumps(before.get(name))}, not {json.dumps(now.get(name))}" for name in changed]
    texts = ["other data" if name == "data" else text for name, text in zip(changed, values, strict=True)]
    return " and ".join([*texts[:SHOWN], *([f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])])
