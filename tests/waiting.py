"""Wait for a condition on a busy machine."""

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Poll until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout: the condition is still false"
        time.sleep(0.01)
