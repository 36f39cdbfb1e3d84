"""The wiring between a project's science and its tools: storage, tracking, sweeps, publishing, deployment."""

from free_ml_stack.errors import NoServiceError, StackError

__all__ = ["NoServiceError", "StackError"]
