"""The configuration of training: every field is a flag of `train` and a parameter for sweeps."""

from dataclasses import dataclass

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run. This module does not import LightGBM, to keep `train --help` fast."""

    rounds: int = flag(
        1000,
        "maximum number of boosting rounds; each adds one tree, or one per class for three or more classes",
        least=1,
    )
    lr: float = flag(0.05, "learning rate: factor of each tree's contribution", above=0)
    leaves: int = flag(31, "maximum number of leaves of a tree", least=2, below=131_073)
    depth: int = flag(-1, "maximum depth of a tree; -1: unlimited", least=-1)
    min_rows: int = flag(20, "minimum number of rows in a leaf, or of a category", least=1)
    column_dropout: float = flag(0.0, "share of columns that each tree ignores, chosen at random", least=0, below=1)
    l1: float = flag(0.0, "L1 regularization of leaf values", least=0)
    l2: float = flag(0.0, "L2 regularization of leaf values", least=0)
    bins: int = flag(255, "maximum number of bins of a numeric column", least=2)
    patience: int = flag(50, "early stopping: rounds without a lower validation loss; 0: off", least=0)
    seed: int = flag(0, "seed of the random choice of columns", least=0)
    device: str = flag("cpu", "device to train on", ("cpu",))
    threads: int = flag(1, "CPU threads, without effect on the result; 0: all", least=0)
    log_every: int = flag(10, "rounds between two logged losses", least=1)
    checkpoint_seconds: float = flag(30.0, "seconds between checkpoints", least=0)
    checkpoint_steps: int = flag(0, "rounds between checkpoints; 0: by time only", least=0)
