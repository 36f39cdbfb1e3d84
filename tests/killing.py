"""Training in processes that start quickly and are killed at a given moment.

A server that has imported torch forks them, so that twenty starts take as long as one from the shell.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import projects

MOMENTS = ("step", "checkpoint", "upload", "validation", "bookkeeping")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["killing", "torch._dynamo", "skeleton.train", "free_ml_stack.training.run", "free_ml_stack.cli.main"]
)


class Blow(NamedTuple):
    """A signal that a process sends to itself, `seconds` after it reaches a moment for the `nth` time.

    A signal from another process could be too late on a busy machine.
    """

    moment: str
    seconds: float = 0
    nth: int = 1
    number: int = signal.SIGKILL


def struck(function: Callable[..., Any], blow: Blow) -> Callable[..., Any]:
    """Wrap `function` so that the signal is sent when it starts."""
    calls = itertools.count(1)

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if next(calls) == blow.nth:
            if blow.seconds:
                threading.Timer(blow.seconds, os.kill, (os.getpid(), blow.number)).start()
            else:
                os.kill(os.getpid(), blow.number)
        return function(*arguments, **options)

    return run


def work(
    folder: Path,
    arguments: tuple[str, ...],
    told: Path,
    extra: dict[str, str],
    blow: Blow | None,
) -> None:
    """Run a command of the project, with a signal at one moment."""
    from skeleton import train

    from free_ml_stack.cli import main as cli
    from free_ml_stack.project.science import Science
    from free_ml_stack.training import checkpoint, outcome

    places: dict[str, tuple[Any, str]] = {
        "step": (train, "cross_entropy"),
        "checkpoint": (checkpoint, "write"),
        "upload": (checkpoint.Checkpoints, "_upload"),
        "validation": (train, "validate"),
        "bookkeeping": (outcome, "save_outcome"),
    }
    if blow:
        owner, name = places[blow.moment]
        setattr(owner, name, struck(getattr(owner, name), blow))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(projects.environment(folder, **extra))
    with (
        told.open("a", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        code = cli.run(Science("skeleton"), arguments)
    raise SystemExit(code)


class Training:
    """A running command of a project, which receives the signal of `blow`, if any."""

    def __init__(self, folder: Path, *arguments: str, blow: Blow | None = None, **extra: str) -> None:
        self.told = folder / "printed.txt"
        self.process = CONTEXT.Process(target=work, args=(folder, arguments, self.told, extra, blow))
        self.process.start()

    def end(self, seconds: float = 120) -> int:
        """Wait for the exit code; it is the negative number of the signal that ended the process."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, self.printed()
        return self.process.exitcode

    def printed(self) -> str:
        """The output of the project's commands so far."""
        return self.told.read_text() if self.told.exists() else ""
