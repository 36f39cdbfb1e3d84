"""Evaluations of a model: metrics, pictures and tables for classification and regression."""

from free_ml_stack.evaluation.classification import classification
from free_ml_stack.evaluation.regression import regression
from free_ml_stack.evaluation.result import Evaluation

__all__ = ["Evaluation", "classification", "regression"]
