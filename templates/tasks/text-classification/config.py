"""What training can be told: every field is a flag of `train` and a name that a sweep may vary."""

import re
from dataclasses import dataclass
from pathlib import Path

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run; without torch, so that `train --help` answers at once."""

    encoder: str = flag(
        "", "encoder to fine-tune: USER/NAME[@REVISION] on the Hub, or a folder; empty: MiniLM, embedded"
    )
    init: str = flag("", "weights to go on from: hf://USER/NAME[@REVISION], a run, a folder, a .safetensors file")
    frozen_layers: int = flag(
        2, "lowest layers that stay as they are, with the embeddings; -1: not even these", least=-1
    )
    lora: int = flag(0, "rank of LoRA's matrices, trained in place of the layers; 0: without", least=0)
    length: int = flag(128, "tokens of a text at most; what is longer is cut", least=3)
    epochs: int = flag(8, "passes over the training split", least=1)
    batch_size: int = flag(32, "texts in a step, over all processes", least=1)
    lr: float = flag(4e-4, "peak learning rate of the encoder, in a schedule that warms up and falls", above=0)
    head_lr: float = flag(2e-3, "peak learning rate of the head", above=0)
    weight_decay: float = flag(0.01, "AdamW's decay of the weights", least=0)
    label_smoothing: float = flag(0.0, "share of the target spread over the other classes", least=0, below=1)
    patience: int = flag(0, "epochs without a lower validation loss before training stops; 0: never", least=0)
    seed: int = flag(0, "seed of the head, the order and the dropout", least=0)
    device: str = flag("auto", "where to train", ("auto", "cpu", "cuda", "mps"))
    precision: str = flag("auto", "number format", ("auto", "float32", "bfloat16", "float16"))
    threads: int = flag(1, "CPU threads; 0: torch's choice, fastest where no other work is done", least=0)
    log_every: int = flag(5, "steps between two records of the training loss", least=1)
    checkpoint_seconds: float = flag(30.0, "seconds between two checkpoints", least=0)
    checkpoint_steps: int = flag(0, "steps between two checkpoints; 0: by time only", least=0)

    def __post_init__(self) -> None:
        """Take the name of a model on the Hub for its address, which is then recorded with its commit."""
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", self.encoder) and not Path(self.encoder).exists():
            object.__setattr__(self, "encoder", f"hf://{self.encoder}")
