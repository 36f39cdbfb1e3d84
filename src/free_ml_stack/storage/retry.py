"""Retries with exponential backoff and jitter, for every service."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE, MAX_PAUSE = 0.1, 30.0  # seconds before the first retry, doubled for each further one up to the maximum
SCALE = 1.0  # factor of every pause; tests set a smaller one


def call(
    work: Callable[[], T],
    transient: tuple[type[Exception], ...],
    after: Callable[[Exception, int], float],
    pause: float = PAUSE,
) -> T:
    """Return the result of `work`; retry it after errors of the types `transient`.

    `after(error, attempts)` returns the minimum pause in seconds, or raises an exception to stop.
    """
    attempts = 0
    while True:
        try:
            return work()
        except transient as error:
            attempts += 1
            at_least = after(error, attempts)
        wait(attempts, at_least, pause)


def wait(attempts: int, at_least: float = 0.0, pause: float = PAUSE) -> None:
    """Pause after an attempt: exponential backoff, with jitter so that clients do not retry in step."""
    longest = min(MAX_PAUSE, pause * 2.0 ** (attempts - 1))
    time.sleep(SCALE * max(at_least, random.uniform(longest / 2, longest)))  # noqa: S311 - not a secret
