"""Repeat what failed in passing: the one loop and the one rule of waiting, for every service."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE, LONGEST = 0.1, 30.0  # seconds before the first repeat, doubled for each further one, up to the longest
SCALE = 1.0  # the factor on every pause; tests set a smaller one


def call(
    work: Callable[[], T],
    passing: tuple[type[Exception], ...],
    after: Callable[[Exception, int], float],
    pause: float = PAUSE,
) -> T:
    """Return what `work` returns, repeating it after errors of the types `passing`.

    `after(error, attempts)` returns the seconds to wait at least, or raises what ends the attempts.
    """
    attempts = 0
    while True:
        try:
            return work()
        except passing as error:
            attempts += 1
            at_least = after(error, attempts)
        wait(attempts, at_least, pause)


def wait(attempts: int, at_least: float = 0.0, pause: float = PAUSE) -> None:
    """Pause after an attempt: longer each time, and never in step with other clients."""
    longest = min(LONGEST, pause * 2.0 ** (attempts - 1))
    time.sleep(SCALE * max(at_least, random.uniform(longest / 2, longest)))  # noqa: S311 - jitter, no secret
