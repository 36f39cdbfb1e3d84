"""The configuration."""

from dataclasses import dataclass

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of training."""

    ridge: float = flag(0.1, "weight of the penalty", above=0)
    sweeps: int = flag(40, "passes over all rows", least=1)
    rate: float = flag(0.5, "size of a step", above=0)
    batch_size: int = flag(16, "rows", least=1)
    device: str = flag("cpu", "where to train")
    threads: int = flag(1, "CPU threads", least=0)
    checkpoint_seconds: float = flag(30.0, "seconds between two checkpoints", least=0)
    checkpoint_steps: int = flag(0, "steps between two checkpoints", least=0)
