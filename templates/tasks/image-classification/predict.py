"""The model as a service: the two functions that an Algorithmia algorithm has. Edit me. No torch in here."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Model(NamedTuple):
    """A loaded model: its session, the names of its classes, the shape of an image, and the largest value in it."""

    session: Any
    labels: list[Any]
    shape: list[int]
    levels: int


def load(model_dir: Path) -> Model:
    """Load `model.onnx` and what `config.json` says of it from a model folder."""
    import onnxruntime  # here, since training needs `pixels` alone

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one image is too little work to share
    path, providers = str(model_dir / "model.onnx"), ["CPUExecutionProvider"]
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    return Model(session, config["labels"], config["shape"], config["levels"])


def apply(input: Any, model: Model) -> dict[str, Any]:
    """Classify one image: the bytes of a file, the same in base64, or numbers. ValueError for anything else."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Model) -> list[dict[str, Any]]:
    """Classify many images in one run of the model; the answers are those of `apply`."""
    rows = model.session.run(None, {"image": images_of(inputs, model)})[0].tolist()
    return [
        {"label": model.labels[row.index(most)], "confidence": most, "probabilities": row}
        for row, most in zip(rows, map(max, rows), strict=True)
    ]


def watch(input: Any, answer: Any, model: Model) -> dict[str, Any]:
    """What monitoring compares with the training data: numbers, and categories as text."""
    return watch_batch([input], [answer], model)[0]


def watch_batch(inputs: list[Any], answers: list[Any], model: Model) -> list[dict[str, Any]]:
    """The same of many calls; a busy gateway logs them with this."""
    values = images_of(inputs, model).reshape(len(inputs), -1)
    means, deviations = values.mean(axis=1).tolist(), values.std(axis=1).tolist()
    return [
        {"label": str(answer["label"]), "confidence": answer["confidence"], "mean": mean, "deviation": deviation}
        for answer, mean, deviation in zip(answers, means, deviations, strict=True)
    ]


def pixels(picture: Any, shape: Sequence[int] | None, box: Any = None) -> NDArray[Any]:
    """An encoded image, or one of uint8, as pixels of a shape (h, w[, 3]); `box` cuts it, in shares of its sides.

    Without a shape it is only read. ValueError for what is no image.
    """
    if isinstance(picture, np.ndarray) and (shape is None or list(picture.shape) == list(shape)):
        return picture
    from PIL import Image

    try:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else Image.open(io.BytesIO(picture))
        height, width = shape[:2] if shape else (1, 1)
        image.draft("RGB", (2 * width, 2 * height))  # a large JPEG is decoded at a fraction of its size
        image = image.convert("RGB" if not shape or shape[2:] else "L")
        edges = None if box is None else tuple(box * np.array(image.size * 2))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, edges, reducing_gap=2.0))
    except (OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected an image ({error})") from None


def images_of(inputs: list[Any], model: Model) -> NDArray[np.float32]:
    """Inputs as the model takes them (n, h, w[, 3]). ValueError for what is no image."""
    try:
        files = [base64.b64decode(one, validate=True) if isinstance(one, str) else one for one in inputs]
        found = [pixels(one, model.shape) if isinstance(one, bytes | bytearray) else one for one in files]
        images = np.asarray(found, dtype=np.float32).reshape(len(inputs), *model.shape)
    except (TypeError, ValueError) as error:  # of base64, too
        numbers = " x ".join(map(str, model.shape))
        raise ValueError(f"expected an image: a file, also in base64, or {numbers} numbers ({error})") from None
    if not (images.min() >= 0 and images.max() <= model.levels):  # nor is NaN
        raise ValueError(f"expected values of pixels from 0 to {model.levels}")
    return images
