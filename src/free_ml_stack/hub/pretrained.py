"""Initial weights: of a model on the Hub at a fixed revision, or of a local model."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.console import join_names
from free_ml_stack.errors import StackError
from free_ml_stack.hub.client import found_on_hub

if TYPE_CHECKING:
    from torch import Tensor, nn

    from free_ml_stack.project.settings import Settings
    from free_ml_stack.storage.repository import Repository

SCHEME, WEIGHTS, INDEX = "hf://", "model.safetensors", "model.safetensors.index.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(place: str, settings: "Settings") -> str:
    """Return the location of weights with its current commit if it is on the Hub; "" for "". Raises StackError."""
    if not place:
        return ""
    if not place.startswith(SCHEME):
        local(place, settings)
        return place
    repo, revision = _parts(place)
    if COMMIT.fullmatch(revision):
        return place
    from huggingface_hub import HfApi

    info = found_on_hub(place, lambda: HfApi().model_info(repo, revision=revision or None))
    return f"{SCHEME}{repo}@{info.sha}"


def pinned_locations(config: Mapping[str, Any], settings: "Settings") -> dict[str, str]:
    """Return the pinned locations in a configuration: `init`, and each value that is a model's URL on the Hub."""
    texts = {name: value for name, value in config.items() if isinstance(value, str)}
    places = {name: value for name, value in texts.items() if name == "init" or _on_hub(value)}
    return {name: pinned(place, settings) for name, place in places.items()}


def weights(place: str, settings: "Settings") -> "dict[str, Tensor]":
    """Load all tensors of a location by name, from safetensors only. Raises StackError."""
    if not place.startswith(SCHEME):
        path = local(place, settings)
        return _tensors(place, path) if path.is_file() else _whole(place, lambda name: path / name, FileNotFoundError)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repo, revision = _parts(place)

    def fetch(name: str) -> Path:
        return Path(found_on_hub(place, lambda: hf_hub_download(repo, name, revision=revision or None)))

    return _whole(place, fetch, EntryNotFoundError)


def local(place: str, settings: "Settings") -> Path:
    """Return the local file or folder of a location: a path, or the name of a run or model. Raises StackError."""
    places: list[Path] = [settings.root / os.path.expanduser(place)]  # noqa: PTH111 - never fails
    places += [] if "/" in place else [settings.runs / place / "model", settings.models / place]
    for path in places:
        if path.suffix == ".safetensors" and path.is_file():
            return path
        if any((path / name).is_file() for name in (WEIGHTS, INDEX)):
            return path
    raise StackError(
        f"init: no weights at {place!r}; expected hf://USER/NAME[@REVISION], a run or model of this project, "
        "a folder with model.safetensors, or a .safetensors file"
    )


def start(model: "nn.Module", found: "Mapping[str, Tensor]", place: str) -> str:
    """Copy the matching tensors into a model; return a message that lists the others. Raises StackError if none match.

    If the names differ by one prefix (`encoder.`, `net.`), it is ignored.
    """
    own = model.state_dict()
    ends = Counter(
        mine.removesuffix(name) for name in found for mine in own if mine == name or mine.endswith(f".{name}")
    )
    prefix = ends.most_common(1)[0][0] if ends else ""
    taken = {
        prefix + name: value
        for name, value in found.items()
        if getattr(own.get(prefix + name), "shape", 0) == value.shape
    }
    if not taken:
        raise StackError(f"init: no tensor of {place} matches this model; use its sizes, or change model.py")
    model.load_state_dict({**own, **taken})
    other = [f"{name} {list(value.shape)}" for name, value in found.items() if prefix + name not in taken]
    new = [name for name in own if name not in taken]
    line = f"Starting from {place}: {len(taken)} of {len(found)} tensors."
    line += f" Not used: {join_names(other)}." if other else ""
    return line + (f" Newly initialized: {join_names(new)}." if new else "")


def _whole(place: str, fetch: Callable[[str], Path], absent: type[Exception]) -> "dict[str, Tensor]":
    """Load the tensors of a single file, or of the files in an index."""
    try:
        return _tensors(place, fetch(WEIGHTS))
    except absent:
        pass
    try:
        found = [_tensors(place, fetch(shard)) for shard in _shards(place, fetch(INDEX))]
    except absent:
        raise StackError(f"{place}: no complete {WEIGHTS}; other formats may run code and are not supported") from None
    return {name: tensor for shard in found for name, tensor in shard.items()}


def _tensors(place: str, path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise StackError(f"{place}: {path.name} is not a complete safetensors file ({error})") from None


def _shards(place: str, index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StackError(f"{place}: {index.name} has no valid weight_map") from None


def _parts(place: str) -> tuple[str, str]:
    if found := _on_hub(place):
        return found.id, found.revision or ""
    raise StackError(
        f"init: expected hf://USER/NAME or hf://USER/NAME@REVISION, a / in the revision as %2F; got {place!r}"
    )


def _on_hub(place: str) -> "Repository | None":
    """Return the model repository of a URL; None for other texts and for files in a repository."""
    if not place.startswith(SCHEME):
        return None
    from free_ml_stack.storage.repository import parse

    try:
        found = parse(place)
    except StackError:
        return None
    return found if found.kind == "model" and not found.folder else None
