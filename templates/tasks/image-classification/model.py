"""The model: a small convolutional network, or a network of timm. Edit me."""

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
INPUTS = {"image": {0: "batch"}}  # inputs of the exported model with their dynamic axes
OUTPUTS = {"probabilities": {0: "batch"}}


class ImageNet(nn.Module, PyTorchModelHubMixin, pipeline_tag=TASK):
    """A classifier with its metadata: class names, image shape and maximum pixel value."""

    def __init__(self, labels: list[Any], shape: list[int], levels: int, backbone: str, **sizes: Any) -> None:
        super().__init__()
        self.labels, self.levels = labels, levels
        make = timm if backbone else small
        self.net = make(backbone, shape, len(labels), **sizes)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (n, classes) from pixels (n, h, w) or (n, h, w, 3) with values from 0 to `levels`."""
        planes = image.float() / self.levels
        logits: Tensor = self.net(planes.permute(0, 3, 1, 2) if planes.ndim > 3 else planes.unsqueeze(1))
        return logits


def small(_: str, shape: Sequence[int], classes: int, width: int, hidden: int, dropout: float) -> nn.Module:
    """Build convolutions that halve the image until it is at most 4 x 4, then two linear layers.

    Group norm gives the same results if a batch is split over processes.
    """
    layers = [nn.Conv2d((*shape, 1)[2], width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
    high, wide = shape[:2]
    while max(high, wide) > 4:
        layers += [nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU()]
        high, wide, width = -(-high // 2), -(-wide // 2), 2 * width
    head = [nn.Linear(width * high * wide, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), *head)


def timm(name: str, shape: Sequence[int], classes: int, dropout: float, **_: Any) -> nn.Module:
    """Create a network of timm with a new head. Raises StackError."""
    try:
        import timm

        channels = (*shape, 1)[2]
        made: nn.Module = timm.create_model(name, in_chans=channels, num_classes=classes, drop_rate=dropout)
        return made
    except ImportError:
        raise StackError("--backbone requires timm; run `uv sync --extra timm`") from None
    except RuntimeError as error:
        raise StackError(f"backbone: {error}; see `timm.list_models()`") from None


def freeze(model: ImageNet, frozen: bool) -> None:
    """Freeze all parameters except the head of a backbone, or unfreeze them."""
    head = set(model.net.get_classifier().parameters())  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.requires_grad = not frozen or parameter in head


def build(config: TrainConfig, facts: Mapping[str, Any]) -> ImageNet:
    """Create the untrained model of a configuration, for the data set of this manifest."""
    labels, most = facts["columns"]["label"]["categories"], facts["columns"]["image"].get("most", 255)
    sizes = {name: getattr(config, name) for name in ("width", "hidden", "dropout")}
    return ImageNet(labels, shape(config, facts), 16 if most <= 16 else 255, config.backbone, **sizes)


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs of the exported model, by name, from a batch."""
    return {"image": batch["image"].astype(np.float32)}


def served(model: ImageNet) -> nn.Module:
    """Return the network to export, with softmax."""
    return nn.Sequential(model, nn.Softmax(1))


def save(model: ImageNet, folder: Path) -> None:
    """Write the weights and the metadata to the model folder."""
    model.save_pretrained(folder)


def load(folder: Path) -> ImageNet:
    """Load a model from its folder, in evaluation mode."""
    model = ImageNet(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    load_model(model, folder / "model.safetensors")
    return model.eval()
