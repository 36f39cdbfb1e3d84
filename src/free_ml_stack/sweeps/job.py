"""The input of a worker: the common part of a sweep, and one trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings
    from free_ml_stack.sweeps.search_space import Sweep


class EventKind(StrEnum):
    """What happened to a trial."""

    VALUE = "value"  # it reported a value of the metric
    DONE = "done"  # it finished with a value
    STOPPED = "stopped"  # it was stopped early, with a value
    FAILED = "failed"  # it raised an error, or exceeded the time limit
    DIED = "died"  # its process died


@dataclass(frozen=True)
class Task:
    """The common part of all trials of a sweep."""

    science: "Science"
    settings: "Settings"
    plan: "Sweep"
    folder: Path

    @property
    def trials(self) -> Path:
        """Return the folder of the trials."""
        return self.folder / "trials"


@dataclass(frozen=True)
class TrialJob:
    """One trial: its number, its configuration and the name of its folder."""

    trial: int
    config: Mapping[str, Any]
    run: str
