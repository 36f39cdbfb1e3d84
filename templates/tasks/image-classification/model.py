"""The model: a small convolutional network, or one of timm's. Edit me."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from free_ml_stack import StackError
from huggingface_hub import PyTorchModelHubMixin
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import Tensor, nn

from .config import TrainConfig
from .data import shape

TASK = "image-classification"
INPUTS = {"image": {0: "batch"}}  # of the exported model, each with its axes of any size
OUTPUTS = {"probabilities": {0: "batch"}}


class ImageNet(nn.Module, PyTorchModelHubMixin, pipeline_tag=TASK):
    """A network, and what it must know of images: the class names, their shape, the largest value in them."""

    def __init__(self, labels: list[Any], shape: list[int], levels: int, backbone: str, **sizes: Any) -> None:
        super().__init__()
        self.labels, self.levels = labels, levels
        make = timm if backbone else small
        self.net = make(backbone, shape, len(labels), **sizes)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels (n, h, w) or (n, h, w, 3), 0 to `levels` -> logits (n, classes)."""
        planes = image.float() / self.levels
        logits: Tensor = self.net(planes.permute(0, 3, 1, 2) if planes.ndim > 3 else planes.unsqueeze(1))
        return logits


def small(_: str, shape: Sequence[int], classes: int, width: int, hidden: int, dropout: float) -> nn.Module:
    """Convolutions that halve the image until it is small, then two linear layers.

    Group norm, so that a batch split over processes gives the same.
    """
    layers = [nn.Conv2d((*shape, 1)[2], width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
    high, wide = shape[:2]
    while max(high, wide) > 4:
        layers += [nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU()]
        high, wide, width = -(-high // 2), -(-wide // 2), 2 * width
    head = [nn.Linear(width * high * wide, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), *head)


def timm(name: str, shape: Sequence[int], classes: int, dropout: float, **_: Any) -> nn.Module:
    """A network of timm's with a new head. Raises StackError."""
    try:
        import timm

        channels = (*shape, 1)[2]
        made: nn.Module = timm.create_model(name, in_chans=channels, num_classes=classes, drop_rate=dropout)
        return made
    except ImportError:
        raise StackError("--backbone needs timm: install this project's extra `timm`") from None
    except RuntimeError as error:
        raise StackError(f"backbone: {error}; `timm.list_models()` names all") from None


def freeze(model: ImageNet, frozen: bool) -> None:
    """Train the head of a backbone alone, or everything."""
    head = set(model.net.get_classifier().parameters())  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.requires_grad = not frozen or parameter in head


def build(config: TrainConfig, facts: Mapping[str, Any]) -> ImageNet:
    """The untrained model that a configuration describes, for the data set of this manifest."""
    labels, most = facts["columns"]["label"]["categories"], facts["columns"]["image"].get("most", 255)
    sizes = {name: getattr(config, name) for name in ("width", "hidden", "dropout")}
    return ImageNet(labels, shape(config, facts), 16 if most <= 16 else 255, config.backbone, **sizes)


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the exported model takes of a batch, by name."""
    return {"image": batch["image"].astype(np.float32)}


def served(model: ImageNet) -> nn.Module:
    """The network as it is exported: with its head, so that it gives probabilities."""
    return nn.Sequential(model, nn.Softmax(1))


def save(model: ImageNet, folder: Path) -> None:
    """Write the weights and all that goes with them into the model folder."""
    model.save_pretrained(folder)


def load(folder: Path) -> ImageNet:
    """The model of a model folder, ready to answer."""
    model = ImageNet(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    load_model(model, folder / "model.safetensors")
    return model.eval()
