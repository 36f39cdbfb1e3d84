"""The configuration of training: every field is a flag of `train` and a parameter for sweeps."""

import re
from dataclasses import dataclass
from pathlib import Path

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run. This module does not import torch, to keep `train --help` fast."""

    encoder: str = flag(
        "", "encoder to fine-tune: USER/NAME[@REVISION] on the Hub, or a folder; empty: embedded MiniLM"
    )
    init: str = flag("", "weights to start from: hf://USER/NAME[@REVISION], a run, a folder, a .safetensors file")
    frozen_layers: int = flag(2, "number of lowest layers to freeze, with the embeddings; -1: freeze nothing", least=-1)
    lora: int = flag(0, "rank of LoRA matrices to train instead of the layers; 0: no LoRA", least=0)
    length: int = flag(128, "maximum number of tokens of a text; longer texts are truncated", least=3)
    epochs: int = flag(8, "passes over the training split", least=1)
    batch_size: int = flag(32, "texts per step, over all processes", least=1)
    lr: float = flag(4e-4, "peak learning rate of the encoder, with linear warmup and decay", above=0)
    head_lr: float = flag(2e-3, "peak learning rate of the head", above=0)
    weight_decay: float = flag(0.01, "weight decay of AdamW", least=0)
    label_smoothing: float = flag(0.0, "share of the target distributed over all classes", least=0, below=1)
    patience: int = flag(0, "early stopping: epochs without a lower validation loss; 0: off", least=0)
    seed: int = flag(0, "seed of the head, the batch order and the dropout", least=0)
    device: str = flag("auto", "device to train on", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag("auto", "number format of the forward pass", ("auto", "float32", "bfloat16", "float16"))
    threads: int = flag(1, "CPU threads; 0: torch's default, fastest on an idle machine", least=0)
    log_every: int = flag(5, "steps between two logged training losses", least=1)
    checkpoint_seconds: float = flag(30.0, "seconds between checkpoints", least=0)
    checkpoint_steps: int = flag(0, "steps between checkpoints; 0: by time only", least=0)

    def __post_init__(self) -> None:
        """Convert a model name on the Hub to its URL, which is recorded with its commit."""
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", self.encoder) and not Path(self.encoder).exists():
            object.__setattr__(self, "encoder", f"hf://{self.encoder}")
