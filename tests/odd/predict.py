"""The service."""

from pathlib import Path
from typing import Any

import onnxruntime

from .data import features


def load(model_dir: Path) -> Any:
    """The session."""
    return onnxruntime.InferenceSession(str(model_dir / "model.onnx"), providers=["CPUExecutionProvider"])


def apply(input: Any, model: Any) -> Any:
    """The mood of a note."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Any) -> list[Any]:
    """The moods of notes."""
    try:
        rows = features([one.get("note") for one in inputs], [float(one["length"]) for one in inputs])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a note and its length ({error!r})") from None
    return [{"warm": warm, "loud": loud} for warm, loud in model.run(None, {"features": rows})[0].tolist()]


def watch(input: Any, answer: Any, model: Any) -> dict[str, Any]:
    """Return both moods, and whether the note is empty."""
    return {**answer, "kind": "note" if input.get("note") else "blank"}
