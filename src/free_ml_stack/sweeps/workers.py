"""Processes that run one trial after the other; a trial that dies takes nothing else with it."""

import contextlib
import io
import math
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from free_ml_stack.errors import PreemptedError, StackError
from free_ml_stack.processes import shorten_socket_paths
from free_ml_stack.sweeps.command import Call, call, is_own, own_arguments, variables
from free_ml_stack.sweeps.job import Job, Task
from free_ml_stack.sweeps.search_space import is_number, measured
from free_ml_stack.tracking.tracker import RunStoppedError, Tracker

GRACE = 10  # seconds in which a trial that is told to end writes its checkpoint
STARTS = 20  # attempts to start a worker, for whatever kills the others may kill it, too
Event = tuple[int, str, Any]  # trial, what happened (value, done, stopped, failed, died), its value or text


class Reporter(Tracker):
    """The tracker of a trial: sends each value of the metric to the sweep, which may answer with stop."""

    def __init__(self, connection: "Connection", trial: int, metric: str) -> None:
        self.connection, self.trial, self.metric = connection, trial, metric
        self.names: set[str] = set()
        self.value: float | None = None

    def log(self, row: int, values: Mapping[str, float]) -> None:
        """Report the metric if it is among `values`; raises RunStoppedError when told to."""
        self.names |= set(values)
        if self.metric in values:
            self.value = values[self.metric]
            self.connection.send((self.trial, "value", self.value))
            if self.connection.recv() == "stop":
                raise RunStoppedError

    def summary(self, values: Mapping[str, Any]) -> None:
        """Take the metric's final value where there is one."""
        self.names |= set(values)
        if (value := measured(values, self.metric)) is not None:
            self.value = value

    def result(self) -> float:
        """The trial's value; StackError if the metric never came, or is no number."""
        if self.value is None:
            raise StackError(f"training logs no {self.metric!r}; it logs {', '.join(sorted(self.names))}")
        if isinstance(self.value, Mapping):  # as `define_metric` leaves one that it is to sum up
            places = ", ".join(f"{self.metric}.{name}" for name in self.value)
            raise StackError(f"{self.metric} is a table in the end; name as the metric one of: {places}")
        if not is_number(self.value):
            raise StackError(f"{self.metric} is {self.value} in the end")
        return float(self.value)


def work(connection: "Connection", task: Task) -> None:
    """The loop of a worker: take a job, run it, report, until the other side hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one that raises may do so where Python can only print it
    connection.send(f"{task.science.package}.train" in sys.modules)
    # the sweep is no more, or this process is told to end and has written its checkpoint
    with suppress(EOFError, ConnectionError, PreemptedError):
        while True:
            job: Job = connection.recv()
            what, value = outcome(task, job, Reporter(connection, job.trial, task.plan.metric))
            connection.send((job.trial, what, value))


def outcome(task: Task, job: Job, reporter: Reporter) -> tuple[str, Any]:
    """Run a trial; how it ended (done, stopped, failed), and its value or what went wrong."""
    try:
        with suppress(RunStoppedError):
            perform(task, job, reporter)
            return "done", reporter.result()
        return "stopped", reporter.result()
    except StackError as error:
        return "failed", str(error)
    except (EOFError, ConnectionError, PreemptedError):
        raise
    except Exception:
        return "failed", traceback.format_exc()


def perform(task: Task, job: Job, reporter: Reporter) -> None:
    """Run a trial as the sweep's command says: in this process where that is the project's own `train`."""
    sweep, package = task.folder.name, task.science.package
    called = call(task.plan, sweep, job.run, job.config, package, task.trials)
    arguments = own_arguments(called.words, package)
    if arguments is None:
        run_elsewhere(task, job, called, reporter)
        return
    from free_ml_stack.project.arguments import parse_train
    from free_ml_stack.training.run import config_from_args, train

    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            args = parse_train(task.science, arguments)
        except SystemExit:
            raise StackError(complaint.getvalue().strip().split("\n")[-1]) from None
    with variables(called.variables):
        config = config_from_args(task.science, task.settings, args)
        train(task.science, config, task.settings, job.run, task.trials, reporter)


def run_elsewhere(task: Task, job: Job, called: Call, reporter: Reporter) -> None:
    """Run a trial whose command is another program."""
    from free_ml_stack.sweeps.program import run_program

    record = task.settings.runs / called.variables["WANDB_RUN_ID"]
    scratch = task.trials / job.run
    run_program(called.words, called.variables, task.settings.root, record, scratch, reporter)


class Workers:
    """A fixed number of workers; one that dies, or whose trial takes longer than `seconds`, is replaced."""

    def __init__(self, task: Task, count: int, seconds: float = 0.0) -> None:
        self.task, self.seconds = task, seconds or math.inf
        shorten_socket_paths()
        methods = multiprocessing.get_all_start_methods()
        # A server that has torch imported once forks workers in milliseconds; Windows has none.
        self.context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        package = task.science.package
        self.preloads = "forkserver" in methods and is_own(task.plan, package)  # another program needs no torch
        if self.preloads:
            self.context.set_forkserver_preload(
                # an optimizer's first step would import the last in each worker: seconds
                [f"{package}.train", "free_ml_stack.training.run", "torch._dynamo"]
            )
        self.free = [self._start() for _ in range(count)]
        self.busy: dict[Connection, tuple[Any, Job, float]] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        busy = [(connection, process) for connection, (process, _, _) in self.busy.items()]
        crew = [*self.free, *busy]
        for connection, process in crew:
            process.terminate()  # training answers with a checkpoint, and then finds that nobody listens
            connection.close()
        for process in [process for _, process in crew]:
            process.join(GRACE)
            process.kill()
            process.join()

    def submit(self, job: Job) -> None:
        """Give a job to a free worker; to the next one where that has died meanwhile."""
        while True:
            connection, process = self.free.pop()
            try:
                connection.send(job)
            except ConnectionError:
                process.join()
                self.free.append(self._start())
                continue
            self.busy[connection] = (process, job, time.monotonic() + self.seconds)
            return

    def events(self, seconds: float) -> Iterator[Event]:
        """What has happened, as soon as something has; nothing after `seconds`."""
        until = min((end for _, _, end in self.busy.values()), default=math.inf)
        for ready in wait(list(self.busy), max(0.0, min(seconds, until - time.monotonic()))):
            assert isinstance(ready, Connection)
            process, job, _ = self.busy[ready]
            try:
                event: Event = ready.recv()
            except (EOFError, ConnectionError):
                event = (job.trial, "died", f"the process died (exit code {self._replace(ready)})")
            if event[1] in ("done", "stopped", "failed"):
                self.free.append((ready, self.busy.pop(ready)[0]))
            yield event
        for connection, (process, job, end) in list(self.busy.items()):
            if time.monotonic() > end:
                process.terminate()
                self._replace(connection)
                yield job.trial, "failed", f"it took more than {self.seconds:g} seconds"

    def answer(self, trial: int, order: str) -> None:
        """Tell a trial that has reported a value to go on or to stop; one that has died meanwhile is told nothing."""
        connection = next(connection for connection, (_, job, _) in self.busy.items() if job.trial == trial)
        with suppress(ConnectionError):
            connection.send(order)

    def _replace(self, connection: Connection) -> int | None:
        """Start another worker in the place of one that ends; returns its exit code."""
        process = self.busy.pop(connection)[0]
        connection.close()
        process.join(GRACE)
        process.kill()
        process.join()
        self.free.append(self._start())
        code: int | None = process.exitcode
        return code

    def _start(self) -> tuple[Connection, Any]:
        for _ in range(STARTS):
            here, there = self.context.Pipe()
            process = self.context.Process(target=work, args=(there, self.task), daemon=True)
            process.start()
            there.close()
            try:
                preloaded = here.recv()
            except (EOFError, ConnectionError):
                process.join()
                here.close()
                continue
            if self.preloads and not preloaded:
                raise StackError("the workers could not import the training code; run `train` to see why")
            return here, process
        raise StackError(f"a worker can't be started (exit code {process.exitcode}); run `train` to see why")
