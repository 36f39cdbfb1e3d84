"""Trials of a local sweep in an Optuna study, which processes on several machines can share.

Optuna's journal does not detect dead processes. Therefore each trial records its owner, which renews a lease. A trial
whose lease has expired, or whose process on this machine has died, is requeued and resumes from its checkpoint.
"""

import os
import socket
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from enum import StrEnum
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from free_ml_stack.processes import alive
from free_ml_stack.sweeps.job import TrialJob
from free_ml_stack.sweeps.search_space import Sweep, is_number

LEASE, RENEWED = 90.0, 15.0  # seconds: duration of a lease, interval of its renewal
TRIES = 3  # maximum number of starts of a trial whose process dies
HOST = socket.gethostname()
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING
COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL
WORKER_PREFIX = "worker "  # prefix of the study attribute of each process
RESET = "reset"  # study attribute: failed trials before this number do not count


class Note(StrEnum):
    """Attributes of a trial."""

    CONFIG = "config"  # its configuration
    RUN = "run"  # name of its run
    GRID = "grid"  # index of its point in a grid
    OWNER = "owner"  # the process that runs it
    UNTIL = "until"  # end of the owner's lease
    BEGUN = "begun"  # number of starts
    STOPPED = "stopped"  # set if it was stopped early
    ERROR = "error"  # error message
    SURPLUS = "surplus"  # set if it exceeds the limit, or duplicates a point of the grid


REQUEUED = (Note.RUN, Note.GRID, Note.CONFIG, Note.BEGUN)  # copied when a trial is requeued


def open_study(plan: Sweep, storage: BaseStorage, name: str, sampler: str = "tpe") -> optuna.Study:
    """Create or load the study of a sweep."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = StudyDirection.MINIMIZE if plan.goal == "minimize" else StudyDirection.MAXIMIZE
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    worker = WORKER_PREFIX + worker_id()
    study.set_user_attr(worker, time.time())
    workers = sorted((at, name) for name, at in study.user_attrs.items() if name.startswith(WORKER_PREFIX))
    # A different seed after each restart and in each process, so that suggestions are not repeated.
    seed = len(study.get_trials(deepcopy=False)) + 1000 * workers.index((study.user_attrs[worker], worker))
    study.sampler = sampler_of(plan, sampler, seed)
    return study


def sampler_of(plan: Sweep, name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a sweep."""
    if plan.method != "bayes":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class Trials:
    """The trials of a sweep, as seen by one of the processes that run them."""

    def __init__(self, plan: Sweep, study: optuna.Study, lock: AbstractContextManager[Any] | None = None) -> None:
        self.plan, self.study, self.lock = plan, study, lock or nullcontext()
        self.points = list(plan.grid()) if plan.method == "grid" else []
        self.mine: dict[int, optuna.Trial] = {}
        self.values: dict[int, int] = {}
        self.renewed = time.monotonic()

    def all(self) -> list[FrozenTrial]:
        """Return all trials except surplus ones and reset failures."""
        reset = self.study.user_attrs.get(RESET, 0)
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if Note.SURPLUS not in trial.user_attrs and not (trial.number < reset and trial.state == FAIL)
        ]

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that count: those with a value, and those that failed with an error of their own."""
        return [trial for trial in self.all() if trial.state == COMPLETE or Note.ERROR in trial.user_attrs]

    def running(self) -> list[FrozenTrial]:
        """Return the running trials, on all machines."""
        return [trial for trial in self.all() if trial.state == RUNNING]

    def reset_failures(self) -> None:
        """Reset failed trials if none has succeeded, assuming that the cause was fixed before this call."""
        if self.ended() and not any(trial.state == COMPLETE for trial in self.all()):
            self.study.set_user_attr(RESET, len(self.study.get_trials(deepcopy=False)))

    def queue(self) -> None:
        """Queue the points of the grid that are not finished, running or queued."""
        known = {
            trial.user_attrs.get(Note.GRID)
            for trial in self.all()
            if trial.state != FAIL or Note.ERROR in trial.user_attrs
        }
        for index, point in enumerate(self.points):
            if index not in known:
                self.study.enqueue_trial({}, user_attrs={Note.GRID: index, Note.CONFIG: point})

    def next(self, limit: int) -> TrialJob | None:
        """Return the next trial; None if other processes have taken it or reached `limit` at the same time."""
        if self.points and not any(trial.state == WAITING for trial in self.all()):
            self.queue()
        with self.lock:
            trial = self.study.ask()
        noted = trial.user_attrs
        begun = noted.get(Note.BEGUN, 0) + 1
        run = noted.get(Note.RUN) or f"{trial.number:04d}"
        lease = ((Note.OWNER, worker_id()), (Note.UNTIL, time.time() + LEASE))
        for name, value in (*lease, (Note.BEGUN, begun), (Note.RUN, run)):
            trial.set_user_attr(name, value)
        if self._surplus(trial.number, noted.get(Note.GRID), limit):
            trial.set_user_attr(Note.SURPLUS, True)
            self.study.tell(trial, state=FAIL)
            return None
        config = noted[Note.CONFIG] if self.points else self.plan.suggest(trial)
        trial.set_user_attr(Note.CONFIG, config)
        self.mine[trial.number] = trial
        return TrialJob(trial.number, config, run)

    def _surplus(self, number: int, point: int | None, limit: int) -> bool:
        """Return whether earlier trials already reach the limit or include the same point of the grid."""
        before = [trial for trial in self.running() if trial.number < number] + self.ended()
        return len(before) >= limit or (
            bool(self.points) and (point is None or point in [trial.user_attrs.get(Note.GRID) for trial in before])
        )

    def report(self, number: int, value: float) -> str:
        """Record a value of a running trial; return "on" to continue or "stop"."""
        early = self.plan.early
        if early is None or not is_number(value):
            return "on"
        step = self.values.get(number, 0)
        self.values[number] = step + 1
        try:
            self.mine[number].report(value, step)
        except UpdateFinishedTrialError:  # the lease expired, and the trial was requeued
            return "stop"
        sign = 1 if self.plan.goal == "minimize" else -1
        histories = {
            trial.number: [sign * seen for _, seen in sorted(trial.intermediate_values.items())] for trial in self.all()
        }
        return "stop" if early.stops(histories[number], list(histories.values())) else "on"

    def adopt(self, run: str, config: dict[str, Any], history: list[float], value: float) -> bool:
        """Add a finished trial of W&B's agents, which the sampler ignores; return False if it is already present."""
        if any(trial.user_attrs.get(Note.RUN) == run for trial in self.all()):
            return False
        noted: dict[str, Any] = {Note.RUN: run, Note.CONFIG: config}
        noted |= {Note.GRID: self.points.index(config)} if config in self.points else {}
        self.study.add_trial(create_trial(value=value, intermediate_values=dict(enumerate(history)), user_attrs=noted))
        return True

    def end(self, number: int, value: float, stopped: bool) -> None:
        """End a trial with a value, which is ignored if its lease has expired."""
        self._end(number, {Note.STOPPED: True} if stopped else {}, COMPLETE, value)

    def fail(self, number: int, text: str) -> None:
        """End a trial with an error."""
        self._end(number, {Note.ERROR: text}, FAIL)

    def retry(self, number: int) -> bool:
        """Requeue a trial whose process died; return False after TRIES starts."""
        trial = self.mine[number]
        if trial.user_attrs[Note.BEGUN] >= TRIES:
            return False
        self._end(number, {}, FAIL)
        self._requeue(trial.params, trial.user_attrs)
        return True

    def _end(self, number: int, noted: dict[str, Any], state: TrialState, value: float | None = None) -> None:
        trial = self.mine.pop(number)
        with suppress(UpdateFinishedTrialError):
            for name, what in noted.items():
                trial.set_user_attr(name, what)
            self.study.tell(trial, value, state=state, skip_if_finished=True)

    def _requeue(self, params: dict[str, Any], noted: dict[str, Any]) -> None:
        kept: dict[str, Any] = {name: noted[name] for name in REQUEUED if name in noted}
        self.study.enqueue_trial(params, user_attrs=kept)

    def renew(self) -> None:
        """Renew the leases of this process's trials if RENEWED seconds have passed."""
        if time.monotonic() - self.renewed < RENEWED:
            return
        self.renewed = time.monotonic()
        for trial in self.mine.values():
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(Note.UNTIL, time.time() + LEASE)

    def reclaim(self) -> None:
        """Requeue the trials whose process has died."""
        for trial in self.running():
            if trial.number in self.mine or not self._abandoned(trial):
                continue
            try:
                self.study.tell(trial.number, state=FAIL)
            except (UpdateFinishedTrialError, ValueError):  # another process was faster
                continue
            self._requeue(trial.params, trial.user_attrs)

    def _abandoned(self, trial: FrozenTrial) -> bool:
        """Return whether the process of a trial has died or its lease has expired."""
        owner = trial.user_attrs.get(Note.OWNER, "")
        if owner and not _is_alive(owner):
            return True
        until = trial.user_attrs.get(
            Note.UNTIL, trial.datetime_start.timestamp() + LEASE if trial.datetime_start else 0
        )
        workers = (name.removeprefix(WORKER_PREFIX) for name in self.study.user_attrs if name.startswith(WORKER_PREFIX))
        others = (worker for worker in workers if worker != worker_id())
        return bool(time.time() > until) or not (owner or any(map(_is_alive, others)))


def worker_id() -> str:
    """Return the name of this process in a study; not a constant, as the process may have been forked."""
    return f"{HOST}:{os.getpid()}"


def _is_alive(owner: str) -> bool:
    """Return whether a process is alive; always true for another machine."""
    host, _, pid = owner.rpartition(":")
    return host != HOST or alive(int(pid))


def table_row(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as an entry of the table."""
    noted = trial.user_attrs
    state = "failed" if trial.state == FAIL else "stopped" if noted.get(Note.STOPPED) else "finished"
    return {
        "trial": trial.number,
        "state": state,
        "value": trial.value,
        "config": noted.get(Note.CONFIG, {}),
        "error": noted.get(Note.ERROR, ""),
    }
