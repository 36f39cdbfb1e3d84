"""Worker processes that run trials one after another, isolated from each other."""

import contextlib
import gc
import io
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from free_ml_stack.errors import PreemptedError, StackError
from free_ml_stack.processes import process_context, set_signals
from free_ml_stack.sweeps.command import environment_variables, runs_train, train_arguments, trial_command
from free_ml_stack.sweeps.job import EventKind, Task, TrialJob
from free_ml_stack.sweeps.search_space import is_number, metric_value
from free_ml_stack.tracking.tracker import RunStoppedError, Tracker

GRACE = 10  # seconds for a terminated trial to write its checkpoint
UNIMPORTABLE = "workers cannot import the training code; run `train` to see the error"
STARTS = 20  # attempts to start a worker, because new ones may be killed as well
Event = tuple[int, EventKind, Any]  # trial, kind, value or message


class Reporter(Tracker):
    """The tracker of a trial, which sends each value of the metric to the sweep and receives whether to stop."""

    def __init__(self, connection: "Connection", trial: int, metric: str) -> None:
        self.connection, self.trial, self.metric = connection, trial, metric
        self.names: set[str] = set()
        self.value: float | None = None

    def log(self, row: int, values: Mapping[str, float]) -> None:
        """Report the metric if it is among `values`. Raises RunStoppedError if the sweep stops the trial."""
        self.names |= set(values)
        if self.metric in values:
            self.value = values[self.metric]
            self.connection.send((self.trial, EventKind.VALUE, self.value))
            if self.connection.recv() == "stop":
                raise RunStoppedError

    def summary(self, values: Mapping[str, Any]) -> None:
        """Update the metric's final value if `values` has one."""
        self.names |= set(values)
        if (value := metric_value(values, self.metric)) is not None:
            self.value = value

    def result(self) -> float:
        """Return the value of the trial. Raises StackError if the metric was never logged or is not a number."""
        if self.value is None:
            raise StackError(f"metric {self.metric!r} was not logged; logged metrics: {', '.join(sorted(self.names))}")
        if isinstance(self.value, Mapping):  # a summary made by W&B's `define_metric`
            places = ", ".join(f"{self.metric}.{name}" for name in self.value)
            raise StackError(f"metric {self.metric} has several summary values; set the metric to one of {places}")
        if not is_number(self.value):
            raise StackError(f"the final value of {self.metric} is {self.value}")
        return float(self.value)


def worker_loop(connection: "Connection", alive: "Connection", task: Task) -> None:
    """Receive jobs, run them and report the results, until a connection is closed."""
    gc.freeze()  # a collection would copy the pages that are shared with the fork server
    set_signals(signal.SIG_DFL, signal.SIG_IGN)  # Ctrl-C is handled by the sweep
    threading.Thread(target=terminate_when_closed, args=(alive,), daemon=True).start()
    # the sweep has ended, or this process was terminated and has saved a checkpoint
    with suppress(EOFError, ConnectionError, PreemptedError):
        connection.send(f"{task.science.package}.train" in sys.modules)
        while True:
            job: TrialJob = connection.recv()
            what, value = run_job(task, job, Reporter(connection, job.trial, task.plan.metric))
            connection.send((job.trial, what, value))


def terminate_when_closed(alive: "Connection") -> None:
    """Raise SIGTERM in this process once the sweep closes a connection: on Windows no other process can."""
    with suppress(EOFError, OSError):
        alive.recv()
    signal.raise_signal(signal.SIGTERM)


def run_job(task: Task, job: TrialJob, reporter: Reporter) -> tuple[EventKind, Any]:
    """Run a trial; return how it ended (done, stopped, failed) and its value or error message."""
    try:
        with suppress(RunStoppedError):
            run_trial(task, job, reporter)
            return EventKind.DONE, reporter.result()
        return EventKind.STOPPED, reporter.result()
    except (EOFError, ConnectionError, PreemptedError):
        raise
    except StackError as error:
        return EventKind.FAILED, str(error)
    except Exception:
        return EventKind.FAILED, traceback.format_exc()


def run_trial(task: Task, job: TrialJob, reporter: Reporter) -> None:
    """Run the command of a trial, in this process if it is the project's `train`."""
    sweep, package = task.folder.name, task.science.package
    words, variables = trial_command(task.plan, sweep, job.run, job.config, package, task.trials)
    arguments = train_arguments(words, package)
    if arguments is None:
        from free_ml_stack.sweeps.program import run_program

        record = task.settings.runs / variables["WANDB_RUN_ID"]
        run_program(words, variables, task.settings.root, record, task.trials / job.run, reporter)
        return
    from free_ml_stack.project.arguments import parse_train
    from free_ml_stack.training.run import config_from_args, train

    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            args = parse_train(task.science, arguments)
        except SystemExit:
            raise StackError(complaint.getvalue().strip().split("\n")[-1]) from None
    with environment_variables(variables):
        config = config_from_args(task.science, task.settings, args)
        train(task.science, config, task.settings, job.run, task.trials, reporter)


class TrialWorker(NamedTuple):
    """A process, the connection for its jobs, and one that terminates it when closed."""

    connection: Connection
    process: Any
    alive: Connection


class Workers:
    """A fixed number of worker processes; one that dies, or whose trial exceeds `seconds`, is replaced."""

    def __init__(self, task: Task, count: int, seconds: float = 0.0) -> None:
        self.task, self.seconds = task, seconds or math.inf
        package = task.science.package
        self.trains = runs_train(task.plan, package)  # other programs do not need torch
        # the last would be imported by the first optimizer step of each worker, which takes seconds
        training = [f"{package}.train", "free_ml_stack.training.run", "torch._dynamo"]
        self.imported = training if self.trains else ["__main__"]  # the default of multiprocessing
        self.free = [self._start() for _ in range(count)]
        self.busy: dict[Connection, tuple[TrialWorker, TrialJob, float]] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self.free, *(worker for worker, _, _ in self.busy.values())]
        for worker in workers:
            worker.alive.close()  # training saves a checkpoint, then finds the other connection closed
            worker.connection.close()
        for worker in workers:
            _join(worker.process)

    def submit(self, job: TrialJob) -> None:
        """Give a job to a free worker, or to the next one if that has died."""
        while True:
            worker = self.free.pop()
            try:
                worker.connection.send(job)
            except ConnectionError:
                worker.alive.close()
                worker.process.join()
                self.free.append(self._start())
                continue
            self.busy[worker.connection] = (worker, job, time.monotonic() + self.seconds)
            return

    def events(self, seconds: float) -> Iterator[Event]:
        """Yield events as soon as there are any; return after `seconds` without one."""
        until = min((end for _, _, end in self.busy.values()), default=math.inf)
        for ready in wait(list(self.busy), max(0.0, min(seconds, until - time.monotonic()))):
            assert isinstance(ready, Connection)
            _, job, _ = self.busy[ready]
            try:
                event: Event = ready.recv()
            except (EOFError, ConnectionError):
                event = (job.trial, EventKind.DIED, f"the process died (exit code {self._replace(ready)})")
            if event[1] in (EventKind.DONE, EventKind.STOPPED, EventKind.FAILED):
                self.free.append(self.busy.pop(ready)[0])
            yield event
        for connection, (_, job, end) in list(self.busy.items()):
            if time.monotonic() > end:
                self._replace(connection)
                yield job.trial, EventKind.FAILED, f"exceeded the time limit of {self.seconds:g} seconds"

    def answer(self, trial: int, order: str) -> None:
        """Send "on" or "stop" to a trial that has reported a value; do nothing if it has died."""
        connection = next(connection for connection, (_, job, _) in self.busy.items() if job.trial == trial)
        with suppress(ConnectionError):
            connection.send(order)

    def _replace(self, connection: Connection) -> int | None:
        """Terminate a worker and start another; return the exit code."""
        worker = self.busy.pop(connection)[0]
        worker.alive.close()
        connection.close()
        _join(worker.process)
        self.free.append(self._start())
        code: int | None = worker.process.exitcode
        return code

    def _start(self) -> TrialWorker:
        for _ in range(STARTS):
            context = process_context(self.imported)
            here, there = context.Pipe()
            reader, alive = context.Pipe(duplex=False)
            process = context.Process(target=worker_loop, args=(there, reader, self.task), daemon=True)
            try:
                process.start()
            except EOFError:  # the fork server ended with the error of a module
                raise StackError(UNIMPORTABLE) from None
            there.close()
            reader.close()
            try:
                preloaded = here.recv()
            except (EOFError, ConnectionError):
                process.join()
                here.close()
                alive.close()
                continue
            if self.trains and context.get_start_method() == "forkserver" and not preloaded:
                raise StackError(UNIMPORTABLE)
            return TrialWorker(here, process, alive)
        raise StackError(f"cannot start a worker (exit code {process.exitcode}); run `train` to see the error")


def _join(process: Any) -> None:
    """Wait for a terminated process; kill it after GRACE seconds."""
    process.join(GRACE)
    process.kill()
    process.join()
