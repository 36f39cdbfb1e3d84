"""Retries: transient errors, pauses, and the end of attempts."""

import pytest

from free_ml_stack.storage import retry


def failing(times: int, error: Exception, seen: list[int]) -> str:
    seen.append(len(seen))
    if len(seen) <= times:
        raise error
    return "done"


def test_pauses_double_with_jitter_and_respect_the_servers_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    seen: list[int] = []
    asked = {1: 0.0, 2: 0.0, 3: 9.0}
    error = OSError("busy")
    found = retry.call(lambda: failing(3, error, seen), (OSError,), lambda _, n: asked[n], pause=1.0)
    assert found == "done"
    assert 0.5 <= slept[0] <= 1.0 <= slept[1] <= 2.0
    assert slept[2] == 9.0
    monkeypatch.setattr(retry, "SCALE", 0.5)
    retry.wait(30, pause=1.0)
    assert slept[3] <= retry.MAX_PAUSE / 2


def test_permanent_errors_and_too_many_attempts_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "SCALE", 0.0)
    seen: list[int] = []
    with pytest.raises(ValueError, match="wrong"):
        retry.call(lambda: failing(9, ValueError("wrong"), seen), (OSError,), lambda *_: 0.0)
    assert len(seen) == 1

    def after(error: Exception, attempts: int) -> float:
        if attempts == 3:
            raise RuntimeError("too many attempts") from error
        return 0.0

    seen.clear()
    with pytest.raises(RuntimeError, match="too many attempts"):
        retry.call(lambda: failing(9, OSError("busy"), seen), (OSError,), after)
    assert len(seen) == 3
