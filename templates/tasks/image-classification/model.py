"""The model: a small convolutional network, or a network of timm. Edit me."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from free_ml_stack import StackError
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from .config import TrainConfig
from .data import shape

TASK = "image-classification"
INPUTS = {"image": {0: "batch"}}  # inputs of the exported model with their dynamic axes
OUTPUTS = {"probabilities": {0: "batch"}}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ImageNet(nn.Module):
    """A classifier with its metadata: class names, image shape and maximum pixel value."""

    mean: Tensor  # of the backbone's pretraining images
    std: Tensor

    def __init__(self, labels: list[Any], shape: list[int], levels: int, backbone: str, **sizes: Any) -> None:
        super().__init__()
        self.about = {"labels": labels, "shape": shape, "levels": levels, "backbone": backbone, **sizes}
        self.labels, self.levels, self.backbone = labels, levels, backbone
        self.net = (timm if backbone else small)(backbone, shape, len(labels), **sizes)
        known: Any = self.net.pretrained_cfg if backbone else {"mean": (0,), "std": (1,)}
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(known[name]).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (n, classes) from pixels (n, h, w) or (n, h, w, 3) with values from 0 to `levels`."""
        planes = image.float() / self.levels
        planes = planes.permute(0, 3, 1, 2) if planes.ndim > 3 else planes.unsqueeze(1)
        if self.backbone:  # grayscale as three equal channels
            planes = (planes.expand(-1, 3, -1, -1) - self.mean) / self.std
        logits: Tensor = self.net(planes)
        return logits


def small(_: str, shape: Sequence[int], classes: int, width: int, hidden: int, dropout: float) -> nn.Module:
    """Build convolutions that halve the image until it is at most 4 x 4, then two linear layers.

    Group norm gives the same results if a batch is split over processes.
    """
    if width % 4:
        raise StackError(f"width: expected a multiple of 4, got {width}")
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
    except ImportError:
        raise StackError("--backbone requires timm; run `uv sync --extra timm`") from None
    try:
        made: nn.Module = timm.create_model(name, num_classes=classes, drop_rate=dropout)
    except RuntimeError as error:
        raise StackError(f"backbone: {error}; see `timm.list_models()`") from None
    about: Any = made.pretrained_cfg
    if about.get("fixed_input_size") and (size := about["input_size"][1]) != shape[0]:
        raise StackError(f"backbone: {name} requires images of {size} pixels; add --size {size}")
    return made


def base_model(config: TrainConfig) -> str:
    """Return the model on the Hub with the weights of the backbone; empty without a pretrained backbone."""
    if not config.backbone or not config.pretrained:
        return ""
    import timm

    known = timm.models.get_pretrained_cfg(config.backbone)
    return str(known.hf_hub_id or "") if known else ""


def initial_weights(config: TrainConfig) -> str:
    """Return the place of the weights to start from: --init, else the backbone's on the Hub. Raises StackError."""
    if config.init or not (config.backbone and config.pretrained):
        return config.init
    if not (found := base_model(config)):
        raise StackError(f"backbone: no weights of {config.backbone} on the Hub; add --init or --pretrained false")
    return f"hf://{found}"


def library(config: TrainConfig) -> str:
    """Return the Hub's id of the library that loads the model; empty for the small network."""
    return "timm" if config.backbone else ""


def use(config: TrainConfig) -> str:
    """Return the Python lines of the card that load the model with its library; empty for the small network."""
    lines = '# pip install timm\nimport timm\n\nmodel = timm.create_model("hf_hub:<repository>", pretrained=True)'
    return lines if config.backbone else ""


def freeze(model: ImageNet, frozen: bool) -> None:
    """Freeze all parameters except the head of a backbone, or unfreeze them."""
    head = set(model.net.get_classifier().parameters())  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.requires_grad = not frozen or parameter in head


def build(config: TrainConfig, facts: Mapping[str, Any]) -> ImageNet:
    """Create the untrained model of a configuration, for the data set of this manifest."""
    labels, most = facts["columns"]["label"]["categories"], facts["columns"]["image"].get("most", 255)
    levels = next(levels for levels in (1, 16, 255) if most <= levels)
    sizes = {name: getattr(config, name) for name in ("width", "hidden", "dropout")}
    return ImageNet(labels, shape(config, facts), levels, config.backbone, **sizes)


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs of the exported model, by name, from a batch."""
    return {"image": batch["image"].astype(np.float32)}


def served(model: ImageNet) -> nn.Module:
    """Return the network to export, with softmax."""
    return nn.Sequential(model, nn.Softmax(1))


def save(model: ImageNet, folder: Path) -> None:
    """Write the weights and the metadata to the model folder; a backbone's in the format of timm."""
    about: dict[str, Any] = {}
    if model.backbone:
        from timm.models import save_for_hf

        save_for_hf(model.net, folder, safe_serialization=True)
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        size = {"input_size": [3, *model.about["shape"][:2]], "crop_pct": 1.0, "crop_mode": "squash"}
        others = {name: value for name, value in about["pretrained_cfg"].items() if not name.startswith("test_")}
        about |= {"pretrained_cfg": {**others, **size, "interpolation": "bilinear"}}
        about |= {"label_names": [*map(str, model.labels)]}
    else:
        save_model(model, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(json.dumps({**about, **model.about}, indent=1), encoding="utf-8")


def load(folder: Path) -> ImageNet:
    """Load a model from its folder, in evaluation mode."""
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = ("labels", "shape", "levels", "backbone", "width", "hidden", "dropout")
    model = ImageNet(**{name: about[name] for name in names})
    load_model(model.net if model.backbone else model, folder / WEIGHTS)
    return model.eval()
