"""How good a model is: what an evaluation holds, and those of a classification and a regression."""

from free_ml_stack.evaluation.classification import classification
from free_ml_stack.evaluation.regression import regression
from free_ml_stack.evaluation.result import Evaluation

__all__ = ["Evaluation", "classification", "regression"]
