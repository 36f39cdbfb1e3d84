"""Space commits to a repository on the Hub so that they stay within its hourly limit."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem

from free_ml_stack.storage.changes import on_hub

if TYPE_CHECKING:
    from free_ml_stack.storage.repository import Repository

HOUR = 3600.0  # seconds
# The Hub accepts 128 commits per hour from a new account. The rest is reserved for urgent commits: data, models,
# the last checkpoint of each run.
SHARE = 112
PAUSES = 20  # a writer with two commits within so many pauses counts as active


class CommitQuota:
    """Decide when one writer may commit to a repository; commits of all writers in the last hour count.

    A single writer may commit every 32 seconds. Concurrent writers, recognized by the titles of their commits, share
    this rate. Once the last hour has `share` commits, none is due until the oldest expires.
    """

    def __init__(self, repository: "Repository", clock: Callable[[], float] = time.time, share: int = SHARE) -> None:
        self.repository, self.clock, self.share = repository, clock, share
        self.last = self.asked = 0.0  # times of the last commit of this writer and of the last request
        self.pause = HOUR / share

    def due(self) -> bool:
        """Return whether this writer may commit now."""
        now = self.clock()
        if now - max(self.last, self.asked) < HOUR / self.share or now - self.last < self.pause:
            return False
        self.asked, recent = now, self.recent(now - HOUR)
        counts = Counter(title for when, title in recent if when > now - PAUSES * HOUR / self.share)
        others = {title for title, count in counts.items() if count > 1} - {self.repository.title}
        self.pause = HOUR / self.share * (1 + len(others))
        return len(recent) < self.share and now - self.last >= self.pause

    def committed(self) -> None:
        """Record a commit made now."""
        self.last = self.clock()

    def recent(self, since: float) -> list[tuple[float, str]]:
        """Return time and title of the commits since a time; the Hub lists the latest first."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import build_hf_headers, paginate, parse_datetime  # type: ignore[attr-defined]

        api, revision = HfApi(), self.repository.revision or "main"
        url = f"{api.endpoint}/api/{self.repository.kind}s/{self.repository.id}/commits/{revision}"
        commits = paginate(url, params={}, headers=build_hf_headers())
        found = ((parse_datetime(commit["date"]).timestamp(), str(commit["title"])) for commit in commits)
        return list(takewhile(lambda commit: commit[0] > since, found))


def commit_quota(store: AbstractFileSystem) -> CommitQuota | None:
    """Return the quota of a store; None for a store without one, such as a bucket."""
    target = on_hub(store)
    return CommitQuota(target) if target and target.versioned else None
