"""Trackio as tracker: a local dashboard without an account, opened with `trackio show`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.credentials import check as credentials
from free_ml_stack.credentials.environment import explain_error
from free_ml_stack.errors import StackError, extra_needed, first_line
from free_ml_stack.tracking.tracker import Tracker, Values

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings


def require_trackio() -> Any:
    """Import trackio. Raises StackError if it is not installed."""
    try:
        import trackio
    except ImportError:
        raise StackError(f"tracker: {extra_needed('trackio', 'trackio')}") from None
    return trackio


class TrackioTracker(Tracker):
    """One run in Trackio: configuration, metrics, pictures and summary; artifacts are not tracked."""

    def __init__(self, settings: "Settings", id: str, kind: str, folder: Path, config: Values) -> None:
        trackio = require_trackio()
        self.folder, self.rows, self.command = folder, 0, settings.command
        self.project = settings.wandb_project or settings.project
        self.run: Any = trackio.init(
            project=self.project, name=id, group=kind, config=dict(config), resume="allow", embed=False
        )

    def log(self, row: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self.rows = row + 1
        # Trackio reserves the name `step`; the row number keeps increasing when a run is resumed.
        self.run.log({name: value for name, value in values.items() if name != "step"}, step=row)

    def summary(self, values: Values) -> None:
        """Log final values as a last row, because Trackio has no summary."""
        self.run.log({f"final/{name}": value for name, value in values.items()}, step=self.rows)

    def picture(self, name: str, path: str) -> None:
        """Log a picture."""
        self.run.log({name: require_trackio().Image(str(self.folder / path))}, step=self.rows)

    def finish(self, exit_code: int) -> str:
        """End the run; return the command to see it."""
        self.run.finish()
        see = f"run `trackio show --project {self.project}` to see the run"
        return f"Trackio: {see}, `{self.command} sync` to publish the dashboard."


def publish(settings: "Settings") -> str:
    """Publish the project's runs as a static Space with a public bucket, or update it; return its URL. StackError."""
    trackio, project = require_trackio(), settings.wandb_project or settings.project
    account = settings.model_repo.partition("/")[0] or settings.huggingface_username
    if "huggingface" not in settings.credentials:
        raise StackError("no key for Hugging Face: set HF_TOKEN to a token that can write, or run `hf auth login`")
    if problem := credentials.key_problem("huggingface", account, settings.root / ".env"):
        raise StackError(problem)
    try:
        space = trackio.sync(project, f"{account}/{project}-runs" if account else f"{project}-runs", sdk="static")
    except Exception as error:  # of the Hub's client, the network or Trackio
        reason = explain_error(error) or first_line(error)
        raise StackError(f"Trackio's Space was not published: {reason}; run sync again") from error
    from huggingface_hub import HfApi

    return f"{HfApi().endpoint}/spaces/{space}"
