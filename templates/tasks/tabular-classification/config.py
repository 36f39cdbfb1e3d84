"""What training can be told: every field is a flag of `train` and a name that a sweep may vary."""

from dataclasses import dataclass

from free_ml_stack import flag


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run; without LightGBM, so that `train --help` answers at once."""

    rounds: int = flag(
        1000, "boosting rounds at most; each adds a tree, or one for each of three or more classes", least=1
    )
    lr: float = flag(0.05, "share of a tree that is added to those before it", above=0)
    leaves: int = flag(31, "leaves of a tree at most", least=2)
    depth: int = flag(-1, "depth of a tree at most; -1: any", least=-1)
    min_rows: int = flag(20, "rows in a leaf, or of a category, at least", least=1)
    column_dropout: float = flag(0.0, "share of the columns, drawn anew, that each tree does without", least=0, below=1)
    l1: float = flag(0.0, "L1 penalty of the values of leaves", least=0)
    l2: float = flag(0.0, "L2 penalty of the values of leaves", least=0)
    bins: int = flag(255, "values that a column of numbers is binned to, at most", least=2)
    patience: int = flag(50, "rounds without a lower validation loss before training stops; 0: never", least=0)
    seed: int = flag(0, "seed of the choice of columns", least=0)
    device: str = flag("cpu", "where to train", ("cpu",))
    threads: int = flag(1, "CPU threads; the model is the same with any number. 0: all", least=0)
    log_every: int = flag(10, "rounds between two records of the losses", least=1)
    checkpoint_seconds: float = flag(30.0, "seconds between two checkpoints", least=0)
    checkpoint_steps: int = flag(0, "rounds between two checkpoints; 0: by time only", least=0)
