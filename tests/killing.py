"""Training in processes that start quickly and are killed at a given moment."""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forking
import projects
from places import ROOT, SOURCE

MOMENTS = ("step", "checkpoint", "upload", "validation", "bookkeeping")


class Blow(NamedTuple):
    """A signal that a process sends to itself, `seconds` after it reaches a moment for the `nth` time.

    A signal from another process could be too late on a busy machine.
    """

    moment: str
    seconds: float = 0
    nth: int = 1
    number: int = signal.SIGKILL


WORK = """
import json, sys
from pathlib import Path
from killing import Blow, work
output, blow, arguments = json.loads(sys.argv[1])
work(Path(output), blow and Blow(*blow), arguments)
"""


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


def work(output: Path, blow: Blow | None, arguments: list[str]) -> None:
    """Run a command of the project with a signal at one moment; `output` receives its output."""
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
    with (
        output.open("a", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        code = cli.run(Science("skeleton"), arguments)
    raise SystemExit(code)


class Training:
    """A running command of a project, which receives the signal of `blow`, if any."""

    def __init__(self, folder: Path, *arguments: str, blow: Blow | None = None, **extra: str) -> None:
        self.output = folder / "printed.txt"
        given = json.dumps([str(self.output), blow, arguments])
        extra |= {"PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT / 'tests'}"}
        self.process = forking.start(["-c", WORK, given], folder, projects.environment(folder, **extra), merged=True)

    def end(self, seconds: float = 120) -> int:
        """Wait for the exit code; it is the negative number of the signal that ended the process."""
        try:
            self.process.communicate(seconds)  # lines of native libraries
        except subprocess.TimeoutExpired:
            raise AssertionError(self.printed()) from None
        assert self.process.returncode is not None
        return self.process.returncode

    def printed(self) -> str:
        """The output of the project's commands so far."""
        return self.output.read_text() if self.output.exists() else ""
