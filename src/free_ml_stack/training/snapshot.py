"""A checkpoint as a folder on disk: written atomically, and verified by checksums when read."""

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
FILES = (TENSORS, STATE, LOG, SUMS)  # checksums last: without them a checkpoint is incomplete
KINDS = {kind: name for name, kind in _TYPES.items()}
SCRATCH = ".step-"  # prefix of temporary folders


class DamagedCheckpointError(StackError):
    """Report a checkpoint whose files are missing or do not match their checksums."""


def write(folder: Path, files: Mapping[str, Content]) -> None:
    """Write a checkpoint to a temporary folder, fsync it, then rename it.

    Checksums are computed unless `files` contains them. A crash or power failure at any moment leaves either no folder
    or the complete one. Raises OSError, leaving nothing behind, if the disk is full or fails.
    """
    if folder.exists():
        return
    parent = folder.parent
    if not parent.exists():
        parent.mkdir(parents=True)
        for above in parent.parents[:3]:  # the run's folder, the folder of all runs, the project
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


def remove_incomplete(folder: Path) -> None:
    """Remove temporary folders of processes that were killed."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def serialize(tensors: Mapping[str, torch.Tensor]) -> Iterable[memoryview | bytes]:
    """Serialize contiguous CPU tensors in the safetensors format, piece by piece, without copying them.

    Source: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {}
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # for alignment
    for name, tensor in ordered:
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape)}
        header[name]["data_offsets"] = [end, end := end + tensor.nbytes]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def read_files(folder: Path) -> dict[str, bytes]:
    """Read and verify the files of a checkpoint. Raises DamagedCheckpointError for missing or changed files."""
    try:
        files = {name: (folder / name).read_bytes() for name in FILES}
    except OSError as error:
        raise DamagedCheckpointError(f"checkpoint {folder.name} is incomplete ({error.strerror})") from None
    verify(folder.name, files)
    return files


def verify(name: str, files: Mapping[str, bytes]) -> None:
    """Raise DamagedCheckpointError if a file does not match its checksum."""
    try:
        sums = json.loads(files[SUMS])
    except ValueError:
        raise DamagedCheckpointError(f"checkpoint {name}: {SUMS} is damaged") from None
    for file in FILES[:-1]:
        if not isinstance(sums, dict) or hashlib.sha256(files[file]).hexdigest() != sums.get(file):
            raise DamagedCheckpointError(f"checkpoint {name}: checksum mismatch for {file}")


def parse(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    """Parse the files of a complete checkpoint to state, tensors and metrics."""
    state: dict[str, Any] = json.loads(files[STATE])
    return state, load(files[TENSORS]), files[LOG]
