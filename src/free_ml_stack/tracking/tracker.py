"""The interface of trackers."""

from collections.abc import Mapping, Sequence
from typing import Any

PREEMPTED = 75  # exit code of a run that can be resumed
Values = Mapping[str, Any]


class RunStoppedError(Exception):
    """Report that the sweep, or a user on the tracker's page, stopped this run; raised by `log`."""


class Tracker:
    """Base class of trackers, to which a run sends its metrics and files; this one ignores them.

    Paths are relative to the run's folder or absolute. `finish` returns the line that shows where to see the run.
    """

    def log(self, row: int, values: Mapping[str, float]) -> None: ...

    def summary(self, values: Values) -> None: ...

    def picture(self, name: str, path: str) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def uses(self, name: str, alias: str) -> None: ...

    def made(self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool) -> None: ...

    def file(self, path: str) -> None: ...

    def finish(self, exit_code: int) -> str:
        return ""

    def stopped_by_sweep(self) -> bool:
        """Return whether the sweep stopped this run, so that it must not be resumed."""
        return False

    @property
    def complete(self) -> bool:
        """Return whether the tracker has received everything."""
        return False
