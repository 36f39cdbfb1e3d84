"""The model: a small convolutional network. Edit me."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .config import TrainConfig
from .data import LABELS

PIXELS = 8  # height and width of an image
LEVELS = 16  # the largest grey value
TASK = "image-classification"
INPUTS = {"image": {0: "batch"}}  # of the exported model, each with its axes of any size
OUTPUTS = {"probabilities": {0: "batch"}}


class DigitsNet(nn.Module, PyTorchModelHubMixin, library_name="pytorch", pipeline_tag=TASK):
    """Two convolutions and two linear layers. Group norm, so that a batch split over processes gives the same."""

    def __init__(self, width: int = 16, hidden: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.GroupNorm(4, 2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * (PIXELS // 2) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, len(LABELS)),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Grey values (n, 8, 8), 0 to 16 -> logits (n, 10)."""
        logits: Tensor = self.net(image.float().unsqueeze(1) / LEVELS)
        return logits


def inputs(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the exported model takes for some rows, by name."""
    return {"image": columns["image"].float()}


def served(model: DigitsNet) -> nn.Module:
    """The network as it is exported: with its head, so that it gives probabilities."""
    return nn.Sequential(model, nn.Softmax(1))


def save(model: DigitsNet, folder: Path) -> None:
    """Write the weights and all that goes with them into the model folder."""
    model.save_pretrained(folder)
    (folder / "labels.json").write_text(json.dumps(LABELS), encoding="utf-8")


def begin(model: DigitsNet, weights: Mapping[str, Tensor]) -> None:
    """Take the weights of a model on the Hub (`train --init`): here all of them, from one of the same sizes."""
    model.load_state_dict(dict(weights), strict=True)


def build(config: TrainConfig) -> DigitsNet:
    """The untrained model that a configuration describes."""
    return DigitsNet(width=config.width, hidden=config.hidden, dropout=config.dropout)
