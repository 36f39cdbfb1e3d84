"""The model as a service: the two functions that an Algorithmia algorithm has. Edit me. No torch in here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SHAPE = (8, 8)
LEVELS = 16  # the largest grey value


@dataclass(frozen=True)
class Model:
    """A loaded model: its session and the names of its classes."""

    session: onnxruntime.InferenceSession
    labels: list[int]


def load(model_dir: Path) -> Model:
    """Load `model.onnx` and the class names from a model folder."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one image is too little work to share
    session = onnxruntime.InferenceSession(
        str(model_dir / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return Model(session, json.loads((model_dir / "labels.json").read_text(encoding="utf-8")))


def apply(input: Any, model: Model) -> dict[str, Any]:
    """Classify one image, 8 x 8 or 64 grey values from 0 to 16. ValueError for anything else."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Model) -> list[dict[str, Any]]:
    """Classify many images in one run of the model; the answers are those of `apply`."""
    rows = model.session.run(None, {"image": _images(inputs)})[0].tolist()
    return [
        {"label": model.labels[row.index(most)], "confidence": most, "probabilities": row}
        for row, most in zip(rows, map(max, rows), strict=True)
    ]


def watch(input: Any, answer: Any, model: Model) -> dict[str, Any]:
    """What monitoring compares with the training data: numbers, and categories as text."""
    return watch_batch([input], [answer], model)[0]


def watch_batch(inputs: list[Any], answers: list[Any], model: Model) -> list[dict[str, Any]]:
    """The same of many calls; a busy gateway logs them with this."""
    pixels = _images(inputs).reshape(len(inputs), -1)
    means, deviations = pixels.mean(axis=1).tolist(), pixels.std(axis=1).tolist()
    return [
        {
            "label": str(answer["label"]),
            "confidence": answer["confidence"],
            "mean": mean,
            "deviation": deviation,
        }
        for answer, mean, deviation in zip(answers, means, deviations, strict=True)
    ]


def _images(inputs: list[Any]) -> NDArray[np.float32]:
    try:
        images = np.asarray(inputs, dtype=np.float32).reshape(len(inputs), *SHAPE)
    except (TypeError, ValueError):
        raise ValueError("expected an image of 8 x 8 or 64 numbers") from None
    if not (images.min() >= 0 and images.max() <= LEVELS):  # nor is NaN
        raise ValueError("expected grey values from 0 to 16")
    return images
