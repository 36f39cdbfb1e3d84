"""The model as a service: `load` and `apply` of an Algorithmia algorithm. Edit me. Must not import torch."""

import base64
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Model(NamedTuple):
    """A loaded model: session, class names, image shape and maximum pixel value."""

    session: Any
    labels: list[Any]
    shape: list[int]
    levels: int


def load(model_dir: Path) -> Model:
    """Load `model.onnx` and its metadata `config.json` from a model folder."""
    import onnxruntime  # imported here, because training only uses `pixels`

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one image is too small for several threads
    path, providers = str(model_dir / "model.onnx"), ["CPUExecutionProvider"]
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    return Model(session, config["labels"], config["shape"], config["levels"])


def apply(input: Any, model: Model) -> dict[str, Any]:
    """Classify one image: a file as bytes or in base64, or nested lists of numbers. Raises ValueError."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Model) -> list[dict[str, Any]]:
    """Classify several images in one run of the model, with the same results as `apply`."""
    rows = model.session.run(None, {"image": images_of(inputs, model)})[0].tolist()
    return [
        {"label": model.labels[row.index(most)], "confidence": most, "probabilities": row}
        for row, most in zip(rows, map(max, rows), strict=True)
    ]


def watch(input: Any, answer: Any, model: Model) -> dict[str, Any]:
    """Return the quantities for monitoring: numbers, and categories as text."""
    return watch_batch([input], [answer], model)[0]


def watch_batch(inputs: list[Any], answers: list[Any], model: Model) -> list[dict[str, Any]]:
    """Return the quantities of several calls; used by the gateway under load."""
    values = images_of(inputs, model).reshape(len(inputs), -1)
    means, deviations = values.mean(axis=1).tolist(), values.std(axis=1).tolist()
    return [
        {"label": str(answer["label"]), "confidence": answer["confidence"], "mean": mean, "deviation": deviation}
        for answer, mean, deviation in zip(answers, means, deviations, strict=True)
    ]


def pixels(picture: Any, shape: Sequence[int] | None, box: Any = None) -> NDArray[Any]:
    """Decode and resize an image, encoded or an array, to `shape` (h, w[, 3]); crop it to `box` (shares of its sides).

    Without `shape`, the image is only checked. Raises ValueError if it is not an image.
    """
    if isinstance(picture, np.ndarray):
        if shape is None or list(picture.shape) == list(shape):
            return picture
        if picture.dtype.kind == "f":
            return scaled_floats(picture, shape, box)
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(picture, np.ndarray):
            image = Image.fromarray(picture.astype(np.uint8))
        else:
            image = Image.open(io.BytesIO(picture))
        height, width = shape[:2] if shape else (1, 1)
        image.draft("RGB", (2 * width, 2 * height))  # decodes a large JPEG at reduced size
        image.load()
        image.getexif()  # kept by the image; `exif_transpose` fails to encode invalid entries of the original again
        image.info.pop("exif", None)
        ImageOps.exif_transpose(image, in_place=True)  # cameras store photos on their side
        if image.mode == "F":
            raise ValueError("expected an image of 8 or 16 bits per channel, got floats")
        if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip to 8
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("RGB" if not shape or shape[2:] else "L")
        return scaled(image, (height, width), box)
    except UnidentifiedImageError:
        raise ValueError("expected an image (the file has another format)") from None
    except (OSError, RuntimeError, SyntaxError, TypeError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"expected an image ({error})") from None


def scaled_floats(picture: NDArray[Any], shape: Sequence[int], box: Any) -> NDArray[Any]:
    """Resize an array of floats to `shape` (h, w[, 3]), each channel alone: Pillow has floats in one channel only."""
    from PIL import Image

    planes = np.moveaxis(np.atleast_3d(picture).astype(np.float32), 2, 0)
    return np.stack([scaled(Image.fromarray(plane), shape, box) for plane in planes], 2).reshape(shape)


def scaled(image: Any, shape: Sequence[int], box: Any) -> NDArray[Any]:
    """Resize an image of Pillow to `shape` (h, w, …), cropped to `box` (shares of its sides)."""
    edges = None if box is None else tuple(box * np.array(image.size * 2))
    return np.asarray(image.resize((shape[1], shape[0]), 2, edges, reducing_gap=2.0))  # 2: bilinear


def images_of(inputs: list[Any], model: Model) -> NDArray[np.float32]:
    """Convert inputs to an array (n, h, w[, 3]). Raises ValueError for invalid images."""
    try:
        found = [resized(one, model) for one in inputs]
        images = np.asarray(found, dtype=np.float32).reshape(len(inputs), *model.shape)
    except (TypeError, ValueError) as error:  # includes errors of base64
        numbers = " x ".join(map(str, model.shape))
        raise ValueError(f"expected an image file as bytes or base64, or {numbers} numbers ({error})") from None
    if not (images.min() >= 0 and images.max() <= model.levels):  # False for NaN
        raise ValueError(f"expected pixel values from 0 to {model.levels}")
    return images


def resized(picture: Any, model: Model) -> Any:
    """Return a file, or nested lists of another size, at the model's size, as in training; other inputs as they are."""
    if isinstance(picture, str):
        picture = base64.b64decode(picture, validate=True)
    if isinstance(picture, bytes | bytearray):
        return pixels(picture, model.shape)
    nested = isinstance(picture, list) and picture and isinstance(picture[0], list)
    if not nested or [len(picture), len(picture[0])] == model.shape[:2]:
        return picture
    numbers = np.asarray(picture)
    if not (numbers.min() >= 0 and numbers.max() <= model.levels):  # uint8 would wrap them
        raise ValueError(f"pixel values from {numbers.min()} to {numbers.max()}")
    return pixels(numbers, model.shape)
