"""Trackio, a dashboard on this machine without an account, in W&B's place: `trackio show` opens it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.errors import StackError
from free_ml_stack.tracking.tracker import Tracker, Values

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings


def require_trackio() -> Any:
    """The package. Raises StackError where it is not installed."""
    try:
        import trackio
    except ImportError:
        raise StackError(
            "tracker is trackio, which is not installed: pip install trackio, or set tracker in stack.toml"
        ) from None
    return trackio


class TrackioTracker(Tracker):
    """One run in Trackio: its configuration, numbers, pictures and final numbers. Of artifacts it is told nothing."""

    def __init__(self, settings: "Settings", id: str, kind: str, folder: Path, config: Values) -> None:
        trackio = require_trackio()
        self.folder, self.rows = folder, 0
        self.project = settings.wandb_project or settings.project
        self.run: Any = trackio.init(
            project=self.project, name=id, group=kind, config=dict(config), resume="allow", embed=False
        )

    def log(self, row: int, values: Mapping[str, float]) -> None:
        """Keep numbers of a step."""
        self.rows = row + 1
        # The step is Trackio's own word, and the row what goes on rising when a run is resumed.
        self.run.log({name: value for name, value in values.items() if name != "step"}, step=row)

    def summary(self, values: Values) -> None:
        """Keep final numbers, as a last row: Trackio has no summary."""
        self.run.log({f"final/{name}": value for name, value in values.items()}, step=self.rows)

    def picture(self, name: str, path: str) -> None:
        """Keep a picture."""
        self.run.log({name: require_trackio().Image(str(self.folder / path))}, step=self.rows)

    def finish(self, exit_code: int) -> str:
        """End the run; returns how to see it."""
        self.run.finish()
        return f"Trackio: see it with `trackio show --project {self.project}`"
