"""One checkpoint as a folder on disk: it appears whole or not at all, and tells when it is not what was written."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import _TYPES, load

from free_ml_stack.errors import StackError
from free_ml_stack.storage.atomic import Content, fsync_directory, write_synced

STATE, TENSORS, SUMS, LOG = "state.json", "state.safetensors", "sums.json", "metrics.jsonl"
FILES = (TENSORS, STATE, LOG, SUMS)  # the sums last: a folder without them is no checkpoint
KINDS = {kind: name for name, kind in _TYPES.items()}
SCRATCH = ".step-"  # how the names of folders in the making begin


class DamagedCheckpointError(StackError):
    """A checkpoint whose files are not those that were written."""


def write(folder: Path, files: Mapping[str, Content]) -> None:
    """Write a checkpoint under a temporary name beside its own, sync it, then rename it.

    Sums are made unless they are among `files`. A crash at any moment, of the power too, leaves no folder or the
    whole one. Raises OSError, with nothing left behind, where the disk is full or sick.
    """
    if folder.exists():
        return
    parent = folder.parent
    if not parent.exists():
        parent.mkdir(parents=True)
        for above in parent.parents[:3]:  # the run's folder, that of all runs, the project
            fsync_directory(above)
    scratch = parent / f"{SCRATCH}{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        sums = {name: write_synced(scratch / name, content) for name, content in files.items()}
        if SUMS not in files:
            write_synced(scratch / SUMS, json.dumps(sums).encode())
        fsync_directory(scratch)
        scratch.rename(folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    fsync_directory(parent)


def clear(folder: Path) -> None:
    """Remove what processes that were killed had in the making."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def serialized(tensors: Mapping[str, torch.Tensor]) -> Iterable[memoryview | bytes]:
    """Contiguous CPU tensors in the format of safetensors, piece by piece: without a copy of them all.

    Source: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {}
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # aligned
    for name, tensor in ordered:
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape)}
        header[name]["data_offsets"] = [end, end := end + tensor.nbytes]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    """State, tensors and record of a checkpoint; DamagedCheckpointError if a file is missing, torn or changed."""
    return parsed(folder.name, whole(folder))


def whole(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each with the sum that was written; DamagedCheckpointError otherwise."""
    try:
        files = {name: (folder / name).read_bytes() for name in FILES}
    except OSError as error:
        raise DamagedCheckpointError(f"checkpoint {folder.name} is not whole ({error.strerror})") from None
    check(folder.name, files)
    return files


def check(name: str, files: Mapping[str, bytes]) -> None:
    """Raise DamagedCheckpointError unless the files have the sums that were written with them."""
    try:
        sums = json.loads(files[SUMS])
    except ValueError:
        raise DamagedCheckpointError(f"checkpoint {name}: {SUMS} is not what was written") from None
    for file in FILES[:-1]:
        if not isinstance(sums, dict) or hashlib.sha256(files[file]).hexdigest() != sums.get(file):
            raise DamagedCheckpointError(f"checkpoint {name}: {file} is not what was written")


def parsed(name: str, files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    """What the files of a whole checkpoint say."""
    state: dict[str, Any] = json.loads(files[STATE])
    return state, load(files[TENSORS]), files[LOG]
