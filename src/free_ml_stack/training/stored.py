"""Upload the checkpoints of a run to a store: on the Hub one request each, within its limit of commits."""

from collections.abc import Callable
from pathlib import Path

from fsspec import AbstractFileSystem

from free_ml_stack.console import say
from free_ml_stack.storage import retry
from free_ml_stack.storage.changes import change
from free_ml_stack.storage.quota import commit_quota
from free_ml_stack.training.snapshot import FILES, DamagedCheckpointError, verify

ATTEMPTS, RETRY_PAUSE = 3, 1.0  # of the last checkpoint of a run; seconds
FEWER = (
    "The Hub accepts 128 commits per hour, so some checkpoints stay on disk only; the last one of the run is always "
    "uploaded. A bucket has no such limit: run `storage push hf://buckets/USER/NAME`, then set it as the storage."
)


class StoredCheckpoints:
    """Upload checkpoints from `folder` to a store, keep the latest `keep` there, and download them."""

    def __init__(self, folder: Path, store: AbstractFileSystem, keep: int, say: Callable[[str], None] = say) -> None:
        self.folder, self.store, self.keep, self.say = folder, store, keep, say
        self.quota = commit_quota(store)
        self.announced = False  # FEWER is printed once
        self.known: list[str] | None = None  # the names in the store, after the first upload

    def names(self) -> list[str]:
        """Return the names of the checkpoints in the store, oldest first."""
        if not self.store.exists(""):
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in self.store.ls("", detail=False))
        return sorted(name for name in names if name.startswith("step-"))

    def fetch(self, name: str) -> dict[str, bytes]:
        """Return the files of a checkpoint. Raises DamagedCheckpointError for missing or changed files."""
        try:
            files: dict[str, bytes] = {file: self.store.cat_file(f"{name}/{file}") for file in FILES}
        except FileNotFoundError:
            raise DamagedCheckpointError(f"checkpoint {name} is incomplete") from None
        verify(name, files)
        return files

    def put(self, name: str, last: bool) -> bool:
        """Upload a checkpoint and remove the oldest; return False if the quota of the store defers it.

        The `last` checkpoint of a run is never deferred, and tried again after a failure.
        """
        if self.quota and not last and not self.quota.due():
            if not self.announced:
                self.say(FEWER)
            self.announced = True
            return False
        if last:  # no later checkpoint makes up for a failure
            retry.call(lambda: self._put(name), (Exception,), give_up, RETRY_PAUSE)
        else:
            self._put(name)
        return True

    def _put(self, name: str) -> None:
        known = sorted({*(self.names() if self.known is None else self.known), name})
        self.known = None  # listed again after a failure, for example if someone has removed a checkpoint
        change(self.store, {f"{name}/{file}": self.folder / name / file for file in FILES}, remove=known[: -self.keep])
        self.known = known[-self.keep :]
        if self.quota:
            self.quota.committed()


def give_up(error: Exception, attempts: int) -> float:
    """Raise the error after the last attempt."""
    if attempts == ATTEMPTS:
        raise error
    return 0.0
