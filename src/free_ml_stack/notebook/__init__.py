"""A project in a notebook on Colab, Kaggle or this machine; standard library only until packages are installed."""

from free_ml_stack.notebook.project import Project

__all__ = ["Project"]
