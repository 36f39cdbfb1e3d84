"""What training can be told: every field is a flag of `train` and a name that a sweep may vary."""

from dataclasses import dataclass

from free_ml_stack import StackError, flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run; without torch, so that `train --help` answers at once."""

    init: str = flag("", "model on the Hub to start from, hf://USER/NAME[@REVISION]; empty: random weights")
    epochs: int = flag(15, "passes over the training split")
    batch_size: int = flag(64, "images in a step, over all processes")
    lr: float = flag(0.006, "peak learning rate of the one-cycle schedule")
    weight_decay: float = flag(0.05, "AdamW's decay of the weights")
    label_smoothing: float = flag(0.05, "share of the target spread over the other classes")
    width: int = flag(16, "channels of the first convolution; a multiple of 4")
    hidden: int = flag(64, "units of the layer before the last")
    dropout: float = flag(0.1, "share of the features dropped before the head")
    shift: int = flag(1, "largest random shift of a training image, in pixels")
    patience: int = flag(6, "epochs without a lower validation loss before training stops; 0: never")
    seed: int = flag(0, "seed of the weights, the order and the shifts")
    device: str = flag("auto", "where to train", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag(
        "auto",
        "number format; auto: bfloat16 where the GPU has it",
        ("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = flag(1, "CPU threads; a small model is fastest with one. 0: torch's choice")
    log_every: int = flag(20, "steps between two records of the training loss")
    checkpoint_seconds: float = flag(30.0, "seconds between two checkpoints")
    checkpoint_steps: int = flag(0, "steps between two checkpoints; 0: by time only")

    def __post_init__(self) -> None:
        """Refuse what can't be trained with. Raises StackError."""
        for name in ("epochs", "batch_size", "lr", "width", "hidden", "log_every"):
            if getattr(self, name) <= 0:
                raise StackError(f"{name}: must be more than 0, is {getattr(self, name)}")
        for name in (
            "weight_decay",
            "shift",
            "patience",
            "seed",
            "threads",
            "checkpoint_seconds",
            "checkpoint_steps",
        ):
            if getattr(self, name) < 0:
                raise StackError(f"{name}: must not be below 0, is {getattr(self, name)}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise StackError(f"{name}: must be from 0 to below 1, is {getattr(self, name)}")
        if self.width % 4:
            raise StackError(f"width: must be a multiple of 4, is {self.width}")
