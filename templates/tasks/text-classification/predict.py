"""The model as a service: `load` and `apply` of an Algorithmia algorithm. Edit me. Must not import torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Model(NamedTuple):
    """A loaded model: session, tokenizer and class names."""

    session: Any
    tokenizer: Any
    labels: list[str]


def load(model_dir: Path) -> Model:
    """Load `model.onnx`, `tokenizer.json` and the class names of `config.json` from a model folder."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one text is too small for several threads
    path, providers = str(model_dir / "model.onnx"), ["CPUExecutionProvider"]
    names = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))["id2label"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return Model(session, tokenizer, [names[str(place)] for place in range(len(names))])


def apply(input: Any, model: Model) -> dict[str, Any]:
    """Classify one text. Raises ValueError for other inputs."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Model) -> list[dict[str, Any]]:
    """Classify several texts in one run of the model, with the same results as `apply`."""
    rows = tokens_of(inputs, model)
    tokens, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])
    shares = model.session.run(None, {"input_ids": tokens, "attention_mask": mask})[0].tolist()
    return [
        {"label": model.labels[row.index(most)], "confidence": most, "probabilities": row}
        for row, most in zip(shares, map(max, shares), strict=True)
    ]


def watch(input: Any, answer: Any, model: Model) -> dict[str, Any]:
    """Return the quantities for monitoring: numbers, and categories as text."""
    [row] = tokens_of([input], model)
    count = sum(row.attention_mask)
    unknown = row.tokens.count(getattr(model.tokenizer.model, "unk_token", None)) / max(count, 1)
    return {"label": answer["label"], "confidence": answer["confidence"], "tokens": count, "unknown": unknown}


def tokens_of(inputs: list[Any], model: Model) -> list[Any]:
    """Tokenize texts, with truncation and padding as in training. Raises ValueError for other inputs."""
    if wrong := [one for one in inputs if not isinstance(one, str)]:
        raise ValueError(f"expected a text, got {type(wrong[0]).__name__}")
    try:
        rows: list[Any] = model.tokenizer.encode_batch(inputs)
    except TypeError:  # an emoji that was cut in half
        raise ValueError("expected a text of valid characters, got half of a surrogate pair") from None
    return rows
