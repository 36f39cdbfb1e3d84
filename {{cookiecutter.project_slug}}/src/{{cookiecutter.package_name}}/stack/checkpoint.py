"""Checkpoints that appear whole or not at all, and training that goes on from them as if never stopped."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save

from . import StackError
from .console import say

STATE, TENSORS = "state.json", "state.safetensors"
BEST, NEWEST = "best", "step"


class Stateful(Protocol):
    """Anything with a state: modules, optimizers, schedules, scalers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Log(Protocol):
    """A record that grows with training and must end where the checkpoint does."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...


@dataclass
class Position:
    """Where training is: `epoch` and `batch` are the next ones, `step` counts the steps done."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("inf")
    stale: int = 0


class Checkpoints:
    """The checkpoints of one run: the newest few, and the one that did best."""

    def __init__(
        self,
        folder: Path,
        log: Log,
        config: Mapping[str, Any],
        seconds: float = 30.0,
        steps: int = 0,
        keep: int = 2,
    ) -> None:
        self.folder, self.log, self.config = folder, log, dict(config)
        self.seconds, self.steps, self.keep = seconds, steps, keep
        self.parts: dict[str, Stateful] = {}
        self.at = Position()
        self.saved_at = time.monotonic()

    def resume(self, parts: Mapping[str, Stateful]) -> Position:
        """Put `parts` (and the random generators) where the newest whole checkpoint left them.

        Returns the position to go on from; the start if there is no checkpoint. Raises StackError, naming the
        field, if the run was started with another configuration.
        """
        self.parts = dict(parts)
        for folder in reversed(self._folders(NEWEST)):
            try:
                state, tensors = read(folder)
            except DamagedCheckpoint as error:
                say(f"{error}; using the one before it")
                continue
            self._refuse_other(state["config"])
            self.at = Position(**state["at"])
            for name, part in self.parts.items():
                part.load_state_dict(joined(state["parts"][name], tensors))
            restore_generators(joined(state["random"], tensors))
            self.log.truncate(state["log"])
            return self.at
        self.log.truncate(0)
        return self.at

    def step(self) -> None:
        """Save if it is time to."""
        due = time.monotonic() - self.saved_at >= self.seconds
        if due or (self.steps and self.at.step % self.steps == 0):
            self.save()

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this moment, and one more under `best` if this is the best one."""
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "at": asdict(self.at),
            "config": self.config,
            "log": self.log.size(),
            "parts": {name: split(part.state_dict(), tensors, name) for name, part in self.parts.items()},
            "random": split(generators(), tensors, "random"),
        }
        write(self.folder / f"{NEWEST}-{self.at.step:09d}", state, tensors)
        if best:
            write(self.folder / f"{BEST}-{self.at.step:09d}", state, tensors)
        for kind, keep in ((NEWEST, self.keep), (BEST, 1)):
            for old in self._folders(kind)[:-keep]:
                shutil.rmtree(old)
        self.saved_at = time.monotonic()

    def best(self, part: str) -> dict[str, Any]:
        """The state that `part` had when the validation loss was lowest."""
        state, tensors = read(self._folders(BEST)[-1])
        found: dict[str, Any] = joined(state["parts"][part], tensors)
        return found

    def _folders(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-*[0-9]"))

    def _refuse_other(self, config: Mapping[str, Any]) -> None:
        for name in self.config.keys() | config.keys():
            if self.config.get(name) != config.get(name):
                raise StackError(
                    f"{name} was {config.get(name)!r} when this run started and is {self.config.get(name)!r} now; "
                    "set it back to resume, or start a new run"
                )


class DamagedCheckpoint(StackError):  # noqa: N818 - it is named, not raised to the user
    """A checkpoint whose files are not those that were written."""


def write(folder: Path, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a checkpoint under a temporary name on the same file system, then give it its own."""
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    body = json.dumps(state).encode()
    sums = {TENSORS: hashlib.sha256(data).hexdigest(), STATE: hashlib.sha256(body).hexdigest()}
    for name, content in ((TENSORS, data), (STATE, body), ("sums.json", json.dumps(sums).encode())):
        with (scratch / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state and tensors of a checkpoint; DamagedCheckpoint if a file is missing, torn or changed."""
    try:
        sums = json.loads((folder / "sums.json").read_bytes())
        files = {name: (folder / name).read_bytes() for name in (STATE, TENSORS)}
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder.name} is not whole ({error})") from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sums.get(name):
            raise DamagedCheckpoint(f"checkpoint {folder.name}: {name} is not what was written")
    state: dict[str, Any] = json.loads(files[STATE])
    return state, load(files[TENSORS])


def split(tree: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """`tree` as JSON, its tensors moved to `tensors` under their path in it."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):  # as pairs: an optimizer's keys are numbers
        return {"items": [[key, split(value, tensors, f"{name}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [split(value, tensors, f"{name}/{i}") for i, value in enumerate(tree)]}
    return tree


def joined(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `split` took apart."""
    if not isinstance(tree, dict):
        return tree
    [(kind, value)] = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: joined(item, tensors) for key, item in value}
    items = [joined(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def generators() -> dict[str, Any]:
    """The states of all random generators that training draws from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Set all random generators to `states`."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
