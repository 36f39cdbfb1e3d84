"""The model: a small convolutional network. Edit me."""

from collections.abc import Mapping

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .config import TrainConfig

CLASSES = 10
PIXELS = 8  # height and width of an image
LEVELS = 16  # the largest grey value
TASK = "image-classification"


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
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Grey values (n, 8, 8), 0 to 16 -> logits (n, 10)."""
        logits: Tensor = self.net(image.float().unsqueeze(1) / LEVELS)
        return logits


def begin(model: DigitsNet, weights: Mapping[str, Tensor]) -> None:
    """Take the weights of a model on the Hub (`train --init`): here all of them, from one of the same sizes."""
    model.load_state_dict(dict(weights), strict=True)


def build(config: TrainConfig) -> DigitsNet:
    """The untrained model that a configuration describes."""
    return DigitsNet(width=config.width, hidden=config.hidden, dropout=config.dropout)
