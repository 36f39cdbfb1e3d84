"""Training in processes that start in no time, tell what they are doing, and can be killed while they do it.

A server that has imported torch once forks them, so that twenty starts cost what one does from the shell.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import projects

MOMENTS = ("step", "checkpoint", "upload", "validation", "bookkeeping")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["killing", "torch._dynamo", "skeleton.train", "skeleton.stack.training", "skeleton.stack.cli"]
)


def shown(
    function: Callable[..., Any], busy: Any, moment: str, dies: tuple[str, float] | None
) -> Callable[..., Any]:
    """`function`, which raises a flag while it runs, and has the process killed soon after where it is to die then."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if dies and dies[0] == moment:
            threading.Timer(dies[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
        with showing(busy, moment):
            return function(*arguments, **options)

    return run


@contextmanager
def showing(busy: Any, moment: str) -> Iterator[None]:
    busy[MOMENTS.index(moment)] = 1
    try:
        yield
    finally:
        busy[MOMENTS.index(moment)] = 0


def work(
    folder: Path,
    arguments: tuple[str, ...],
    busy: Any,
    told: Path,
    extra: dict[str, str],
    dies: tuple[str, float] | None,
) -> None:
    """Run a command of the project; the real code, with flags around the moments that a kill may hit."""
    from skeleton import __main__ as project
    from skeleton import train
    from skeleton.config import TrainConfig
    from skeleton.stack import checkpoint, cli, training
    from skeleton.stack.science import Science

    for owner, name, moment in (
        (train, "cross_entropy", "step"),
        (checkpoint, "write", "checkpoint"),
        (checkpoint.Checkpoints, "_upload", "upload"),
        (train, "evaluate", "validation"),
        (training, "_keep", "bookkeeping"),
    ):
        setattr(owner, name, shown(getattr(owner, name), busy, moment, dies))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(projects.environment(folder, **extra))
    with (
        told.open("a", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        code = cli.run(Science(str(project.__package__), TrainConfig), arguments)
    raise SystemExit(code)


class Training:
    """A command of a project under way; `dies` is a moment, and the seconds after its begin when it is killed."""

    def __init__(
        self, folder: Path, *arguments: str, dies: tuple[str, float] | None = None, **extra: str
    ) -> None:
        self.busy = CONTEXT.Array("b", len(MOMENTS), lock=False)
        self.told = folder / "printed.txt"
        self.process = CONTEXT.Process(
            target=work, args=(folder, arguments, self.busy, self.told, extra, dies)
        )
        self.process.start()

    def during(self, moment: str, seconds: float = 60) -> bool:
        """Wait until it is at `moment`; whether it came to it before it ended."""
        end = time.monotonic() + seconds
        index = MOMENTS.index(moment)
        while self.process.is_alive():
            if self.busy[index]:
                return True
            assert time.monotonic() < end, f"never at {moment}"
        return False

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()
        self.process.close()

    def end(self, seconds: float = 120) -> int:
        """Its exit code, once it has ended by itself."""
        self.process.join(seconds)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def printed(self) -> str:
        """All that the project's commands have printed so far."""
        return self.told.read_text() if self.told.exists() else ""
