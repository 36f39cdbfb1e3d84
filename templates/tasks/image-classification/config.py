"""The configuration of training: every field is a flag of `train` and a parameter for sweeps."""

from dataclasses import dataclass

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run. This module does not import torch, to keep `train --help` fast."""

    init: str = flag("", "weights to start from: hf://USER/NAME[@REVISION], a run, a folder, a .safetensors file")
    backbone: str = flag("", "timm network such as resnet18; empty: the small network of model.py")
    pretrained: bool = flag(True, "load the backbone's weights from the Hub, unless --init names others")
    frozen_epochs: int = flag(0, "first epochs in which only the head of a backbone is trained", least=0)
    size: int = flag(0, "height and width of images in pixels; 0: as stored, or 64 for files", least=0)
    epochs: int = flag(15, "passes over the training split", least=1)
    batch_size: int = flag(64, "images per step, over all processes", least=1)
    lr: float = flag(0.006, "peak learning rate of the one-cycle schedule", above=0)
    weight_decay: float = flag(0.05, "weight decay of AdamW", least=0)
    label_smoothing: float = flag(0.05, "share of the target distributed over all classes", least=0, below=1)
    width: int = flag(16, "channels of the first convolution; a multiple of 4", least=4)
    hidden: int = flag(64, "units of the second-to-last layer", least=1)
    dropout: float = flag(0.1, "dropout rate before the head", least=0, below=1)
    shift: int = flag(1, "maximum random shift of a training image in pixels", least=0)
    flip: float = flag(0.0, "share of training images that are mirrored", least=0, below=1)
    crop: float = flag(0.0, "maximum share of the sides removed by a random crop of an image file", least=0, below=1)
    patience: int = flag(6, "early stopping: epochs without a lower validation loss; 0: off", least=0)
    seed: int = flag(0, "seed of the weights, the batch order and the augmentation", least=0)
    device: str = flag("auto", "device to train on", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag("auto", "number format of the forward pass", ("auto", "float32", "bfloat16", "float16"))
    threads: int = flag(1, "CPU threads; 1 is fastest for a small model; 0: torch's default", least=0)
    log_every: int = flag(20, "steps between two logged training losses", least=1)
    checkpoint_seconds: float = flag(30.0, "seconds between checkpoints", least=0)
    checkpoint_steps: int = flag(0, "steps between checkpoints; 0: by time only", least=0)
