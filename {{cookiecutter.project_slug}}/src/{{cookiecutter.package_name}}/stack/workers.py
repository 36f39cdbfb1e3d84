"""Processes that train one trial after the other; a trial that dies takes nothing else with it."""

import multiprocessing
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import StackError
from .flags import read
from .tracking import Untracked

if TYPE_CHECKING:
    from .science import Science
    from .settings import Settings

GRACE = 10  # seconds in which a trial that is told to end writes its checkpoint
Event = tuple[int, str, Any]  # trial, what happened (value, done, stopped, failed), its value or text


@dataclass(frozen=True)
class Job:
    """What a worker needs for a trial: its number, its configuration, and the name of its folder."""

    trial: int
    config: Mapping[str, Any]
    run: str


class TrialStopped(Exception):  # noqa: N818 - an order, not a fault
    """The sweep has stopped this trial early."""


class Reporter(Untracked):
    """The tracker of a trial: sends each value of the metric to the sweep, which may answer with stop."""

    def __init__(self, connection: "Connection", trial: int, metric: str) -> None:
        self.connection, self.trial, self.metric = connection, trial, metric
        self.names: set[str] = set()
        self.value: float | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report the metric if it is among `values`; raises TrialStopped when told to."""
        self.names |= set(values)
        if self.metric in values:
            self.value = values[self.metric]
            self.connection.send((self.trial, "value", self.value))
            if self.connection.recv() == "stop":
                raise TrialStopped

    def summary(self, values: Mapping[str, Any]) -> None:
        """Take the metric's final value where there is one."""
        self.names |= set(values)
        self.value = values.get(self.metric, self.value)

    def result(self) -> float:
        """The trial's value; StackError if the metric never came."""
        if self.value is None:
            raise StackError(f"training logs no {self.metric!r}; it logs {', '.join(sorted(self.names))}")
        return float(self.value)


def work(
    connection: "Connection", science: "Science", settings: "Settings", folder: Path, metric: str
) -> None:
    """The loop of a worker: take a job, train, report, until the other side hangs up."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's to handle
    connection.send(f"{science.package}.train" in sys.modules)
    from .checkpoint import Interrupted
    from .training import train

    with suppress(EOFError, ConnectionError):  # the sweep is no more
        while True:
            job: Job = connection.recv()
            reporter = Reporter(connection, job.trial, metric)
            try:
                train(science, read(science.config, job.config), settings, job.run, folder, reporter)
                connection.send((job.trial, "done", reporter.result()))
            except TrialStopped:
                connection.send((job.trial, "stopped", reporter.result()))
            except Interrupted:  # told to end; a checkpoint is written
                return
            except StackError as error:
                connection.send((job.trial, "failed", str(error)))
            except (EOFError, ConnectionError):
                raise
            except Exception:
                connection.send((job.trial, "failed", traceback.format_exc()))


class Workers:
    """A fixed number of workers; one that dies is replaced, and its trial reported as failed."""

    def __init__(
        self, science: "Science", settings: "Settings", folder: Path, metric: str, count: int
    ) -> None:
        self.arguments = (science, settings, folder, metric)
        methods = multiprocessing.get_all_start_methods()
        # A server that has torch imported once forks workers in milliseconds; Windows has none.
        self.context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self.context.set_forkserver_preload(
                # an optimizer's first step would import the last in each worker: seconds
                [f"{science.package}.train", f"{science.package}.stack.training", "torch._dynamo"]
            )
        self.free = [self._start() for _ in range(count)]
        self.busy: dict[Connection, tuple[Any, Job]] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        crew = [*self.free, *((connection, process) for connection, (process, _) in self.busy.items())]
        for connection, process in crew:
            process.terminate()  # training answers with a checkpoint, and then finds that nobody listens
            connection.close()
        for process in [process for _, process in crew]:
            process.join(GRACE)
            process.kill()
            process.join()

    def submit(self, job: Job) -> None:
        """Give a job to a free worker."""
        connection, process = self.free.pop()
        self.busy[connection] = (process, job)
        connection.send(job)

    def events(self) -> Iterator[Event]:
        """What has happened, as soon as something has."""
        for ready in wait(list(self.busy)):
            assert isinstance(ready, Connection)
            process, job = self.busy[ready]
            try:
                event: Event = ready.recv()
            except (EOFError, ConnectionError):
                del self.busy[ready]
                process.join()
                self.free.append(self._start())
                event = (job.trial, "failed", f"the process died (exit code {process.exitcode})")
            if event[1] in ("done", "stopped") or (event[1] == "failed" and ready in self.busy):
                self.free.append((ready, self.busy.pop(ready)[0]))
            yield event

    def answer(self, trial: int, order: str) -> None:
        """Tell a trial that has reported a value to go on or to stop."""
        next(connection for connection, (_, job) in self.busy.items() if job.trial == trial).send(order)

    def _start(self) -> tuple[Connection, Any]:
        here, there = self.context.Pipe()
        process = self.context.Process(target=work, args=(there, *self.arguments), daemon=True)
        process.start()
        there.close()
        preloaded = here.recv()
        if not preloaded and self.context.get_start_method() == "forkserver":
            raise StackError("the workers could not import the training code; run `train` to see why")
        return here, process
