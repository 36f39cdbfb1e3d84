"""What training can be told: every field is a flag of `train` and a name that a sweep may vary."""

from dataclasses import dataclass

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run; without torch, so that `train --help` answers at once."""

    init: str = flag("", "weights to start from: hf://USER/NAME[@REVISION], a run, a folder, a .safetensors file")
    backbone: str = flag("", "network of timm, such as resnet18; empty: the small one of model.py")
    frozen_epochs: int = flag(0, "epochs in the beginning that train the head of a backbone alone", least=0)
    size: int = flag(0, "pixels of both sides of an image; 0: as stored, 64 for files", least=0)
    epochs: int = flag(15, "passes over the training split", least=1)
    batch_size: int = flag(64, "images in a step, over all processes", least=1)
    lr: float = flag(0.006, "peak learning rate of the one-cycle schedule", above=0)
    weight_decay: float = flag(0.05, "AdamW's decay of the weights", least=0)
    label_smoothing: float = flag(0.05, "share of the target spread over the other classes", least=0, below=1)
    width: int = flag(16, "channels of the first convolution; a multiple of 4", least=4)
    hidden: int = flag(64, "units of the layer before the last", least=1)
    dropout: float = flag(0.1, "share of the features dropped before the head", least=0, below=1)
    shift: int = flag(1, "largest random shift of a training image, in pixels", least=0)
    flip: float = flag(0.0, "share of the training images that are mirrored", least=0, below=1)
    crop: float = flag(0.0, "largest share of the sides that a random crop of a file removes", least=0, below=1)
    patience: int = flag(6, "epochs without a lower validation loss before training stops; 0: never", least=0)
    seed: int = flag(0, "seed of the weights, the order and the augmentation", least=0)
    device: str = flag("auto", "where to train", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag("auto", "number format", ("auto", "float32", "bfloat16", "float16"))
    threads: int = flag(1, "CPU threads; a small model is fastest with one. 0: torch's choice", least=0)
    log_every: int = flag(20, "steps between two records of the training loss", least=1)
    checkpoint_seconds: float = flag(30.0, "seconds between two checkpoints", least=0)
    checkpoint_steps: int = flag(0, "steps between two checkpoints; 0: by time only", least=0)
