"""The model library: training can start from a model on the Hugging Face Hub, at a revision that stays the same."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from free_ml_stack.errors import StackError
from free_ml_stack.hub.client import MISSING, with_retries

SCHEME, WEIGHTS, INDEX = "hf://", "model.safetensors", "model.safetensors.index.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
NAMED = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def pinned(url: str) -> str:
    """`hf://user/name[@revision]` with the commit that it means now; an empty text stays one. Raises StackError."""
    if not url:
        return ""
    repo, revision = _parts(url)
    if COMMIT.fullmatch(revision):
        return url
    from huggingface_hub import HfApi

    info = _asked(url, lambda: HfApi().model_info(repo, revision=revision or None))
    return f"{SCHEME}{repo}@{info.sha}"


def weights(url: str) -> dict[str, Tensor]:
    """All tensors of a model on the Hub by their names, from safetensors only. Raises StackError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repo, revision = _parts(url)

    def fetch(name: str) -> Path:
        return Path(_asked(url, lambda: hf_hub_download(repo, name, revision=revision or None)))

    try:
        return _tensors(url, fetch(WEIGHTS))
    except EntryNotFoundError:
        pass
    try:
        found = [_tensors(url, fetch(shard)) for shard in _shards(url, fetch(INDEX))]
    except EntryNotFoundError:
        raise StackError(f"{url} has no whole {WEIGHTS}; other formats may run code and are not read") from None
    return {name: tensor for shard in found for name, tensor in shard.items()}


def _tensors(url: str, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise StackError(f"{url}: {path.name} is no whole file of safetensors ({error})") from None


def _shards(url: str, index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StackError(f"{url}: {index.name} does not tell where its tensors are") from None


def load_pretrained(model: nn.Module, url: str, begin: Callable[[Any, Mapping[str, Tensor]], None]) -> None:
    """Start `model` from the weights of a model on the Hub; nothing for an empty `url`. Raises StackError."""
    if not url:
        return
    try:
        begin(model, weights(url))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise StackError(
            f"{url} does not fit: {reason}; train with its sizes (its config.json), or choose layers in model.py"
        ) from None


def _parts(url: str) -> tuple[str, str]:
    found = NAMED.fullmatch(url)
    if not found:
        raise StackError(f"init: expected hf://USER/NAME or hf://USER/NAME@REVISION, got {url!r}")
    return found[1], found[2] or ""


def _asked(url: str, work: Callable[[], Any]) -> Any:
    """What the Hub answers; StackError where it does not know the model or the revision."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    absent = StackError(f"{url} is not on the Hub, or this account may not read it")

    def ask() -> Any:
        try:
            return work()
        except RepositoryNotFoundError:  # a 401 to whoever has no key
            raise absent from None

    try:
        return with_retries(ask)
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        assert error.response.status_code == MISSING
        raise absent from None
