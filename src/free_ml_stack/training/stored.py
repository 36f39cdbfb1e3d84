"""The checkpoints of one run in a store: one request each where the store is on the Hub, no more than it takes."""

from collections.abc import Callable
from pathlib import Path

from fsspec import AbstractFileSystem

from free_ml_stack.console import say
from free_ml_stack.storage.changes import change
from free_ml_stack.storage.quota import commit_quota
from free_ml_stack.training.snapshot import FILES, DamagedCheckpointError, verify

RARER = (
    "The Hub takes 128 commits an hour, so fewer checkpoints are stored than are written to disk; the last one of a "
    "run always is. A bucket takes all: move the store with `storage push hf://buckets/USER/NAME`."
)


class StoredCheckpoints:
    """The newest `keep` checkpoints in a store, copied from `folder`."""

    def __init__(self, folder: Path, store: AbstractFileSystem, keep: int, say: Callable[[str], None] = say) -> None:
        self.folder, self.store, self.keep, self.say = folder, store, keep, say
        self.quota = commit_quota(store)
        self.rarer = False  # whether that has been said
        self.known: list[str] = []
        self.listed = False

    def names(self) -> list[str]:
        """The names of the checkpoints in the store, oldest first."""
        if not self.store.exists(""):
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in self.store.ls("", detail=False))
        return sorted(name for name in names if name.startswith("step-"))

    def fetch(self, name: str) -> dict[str, bytes]:
        """The files of a checkpoint; DamagedCheckpointError if they are not what was written."""
        try:
            files: dict[str, bytes] = {file: self.store.cat_file(f"{name}/{file}") for file in FILES}
        except FileNotFoundError:
            raise DamagedCheckpointError(f"checkpoint {name} is incomplete") from None
        verify(name, files)
        return files

    def put(self, name: str, last: bool) -> bool:
        """Copy a checkpoint and remove the oldest; False where the store's quota has no room for one yet.

        There is always room for the `last` one of a run.
        """
        if self.quota and not last and not self.quota.due():
            if not self.rarer:
                self.say(RARER)
            self.rarer = True
            return False
        known = self.known if self.listed else self.names()
        known = sorted({*known, name})
        change(self.store, {f"{name}/{file}": self.folder / name / file for file in FILES}, remove=known[: -self.keep])
        self.known, self.listed = known[-self.keep :], True
        if self.quota:
            self.quota.committed()
        return True
