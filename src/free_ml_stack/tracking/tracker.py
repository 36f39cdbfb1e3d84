"""What a tracker is told of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

PREEMPTED = 75  # the exit code of a run that goes on later
Values = Mapping[str, Any]


class RunStoppedError(Exception):
    """A sweep, or somebody at the tracker's page, has ended this run: raised by `log`."""


class Tracker:
    """Where a run's numbers go besides the record on disk; this one keeps nothing, so that no caller needs to ask.

    Paths are relative to the run's folder or absolute. `finish` returns the line that says where the run can be seen.
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

    def over(self) -> bool:
        """Whether a run that the system stops is not to go on later."""
        return False

    @property
    def complete(self) -> bool:
        """Whether all has arrived elsewhere."""
        return False
