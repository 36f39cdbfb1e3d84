"""Classes used by the training loop of a project."""

from free_ml_stack.data.split import Split
from free_ml_stack.tracking.run import Run
from free_ml_stack.training.checkpoint import Checkpoints
from free_ml_stack.training.process import Process

__all__ = ["Checkpoints", "Process", "Run", "Split"]
