"""Concurrent calls."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any


class InFlight:
    """A context manager that runs at most `limit` submitted calls concurrently, and waits for them on exit.

    The error of the first failed call is raised by the next `submit`, or on exit.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pool = ThreadPoolExecutor(limit)
        self.pending: set[Future[Any]] = set()

    def submit(self, call: Callable[..., object], *arguments: Any) -> None:
        """Start a call; block while `limit` calls are running."""
        while len(self.pending) >= self.limit:
            self._collect()
        self.pending.add(self.pool.submit(call, *arguments))

    def _collect(self) -> None:
        done, self.pending = wait(self.pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()

    def __enter__(self) -> "InFlight":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            while self.pending and kind is None:
                self._collect()
        finally:
            self.pool.shutdown(cancel_futures=True)
