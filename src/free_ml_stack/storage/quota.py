"""Commits to a repository on the Hub, spaced so that it never refuses one."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import takewhile

from fsspec import AbstractFileSystem
from huggingface_hub import HfApi
from huggingface_hub.utils import build_hf_headers, paginate, parse_datetime  # type: ignore[attr-defined]

from free_ml_stack.storage.changes import on_hub
from free_ml_stack.storage.repository import Repository

HOURLY, HOUR = 128, 3600.0  # commits that the Hub takes of a new account; its refusal names the number
SHARE = 112  # of these; the others are for what must go at once: data, models, the last checkpoint of a run
PAUSES = 20  # within which who has committed twice counts as a writer


class CommitQuota:
    """What one writer may commit to a repository, as every commit of the last hour counts, whoever made it.

    A writer alone may commit every 32 seconds; several, who know of each other by the titles of their commits, share
    that. Where an hour has had its share all the same, the next one waits until there is room.
    """

    def __init__(self, repository: Repository, clock: Callable[[], float] = time.time, share: int = SHARE) -> None:
        self.repository, self.clock, self.share = repository, clock, share
        self.last = self.asked = 0.0  # when this writer committed, and when the Hub was asked for the commits
        self.pause = HOUR / share

    def due(self) -> bool:
        """Whether a commit may be made now."""
        now = self.clock()
        if now - max(self.last, self.asked) < HOUR / self.share or now - self.last < self.pause:
            return False
        self.asked, recent = now, self.recent(now - HOUR)
        counts = Counter(title for when, title in recent if when > now - PAUSES * HOUR / self.share)
        others = {title for title, count in counts.items() if count > 1} - {self.repository.title}
        self.pause = HOUR / self.share * (1 + len(others))
        return len(recent) < self.share and now - self.last >= self.pause

    def committed(self) -> None:
        """Note a commit that was made now."""
        self.last = self.clock()

    def recent(self, since: float) -> list[tuple[float, str]]:
        """The times and titles of the commits since a time; the Hub lists them from the newest on."""
        api, revision = HfApi(), self.repository.revision or "main"
        url = f"{api.endpoint}/api/{self.repository.kind}s/{self.repository.id}/commits/{revision}"
        commits = paginate(url, params={}, headers=build_hf_headers())
        found = ((parse_datetime(commit["date"]).timestamp(), str(commit["title"])) for commit in commits)
        return list(takewhile(lambda commit: commit[0] > since, found))


def commit_quota(store: AbstractFileSystem) -> CommitQuota | None:
    """The quota of a store; None where it takes any number of changes, as a bucket does."""
    target = on_hub(store)
    return CommitQuota(target) if target and target.versioned else None
