"""The trials of a sweep without an account, on Optuna: kept where many processes, on many machines, may share them.

Optuna's journal tells nobody when a process has died. So each trial names its owner, who renews a lease; whose lease is
over, or whose process on this machine is gone, loses the trial: it is run again, and goes on from its checkpoint.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from free_ml_stack.errors import StackError, first_line
from free_ml_stack.processes import alive
from free_ml_stack.sweeps.job import Job
from free_ml_stack.sweeps.search_space import Sweep, is_number

LOCK = 5  # seconds after which a lock was left by a process that was killed
LEASE, RENEWED = 90.0, 15.0  # seconds that a lease lasts, and after which it is renewed
TRIES = 3  # times that a trial is begun whose process dies
HOST = socket.gethostname()
WORKER_ID = f"{HOST}:{os.getpid()}"
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING
COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL
WORKER = "crew "  # begins what the study notes of each process that works on it
MENDED = "mended"  # what it notes where all had failed: those before this number count no more


class Note(StrEnum):
    """What is noted of a trial."""

    CONFIG = "config"  # its configuration
    RUN = "run"  # the name of its run
    GRID = "grid"  # the number of its point of a grid
    OWNER = "owner"  # the process that runs it
    UNTIL = "until"  # the end of that process's lease
    BEGUN = "begun"  # how often it was begun
    STOPPED = "stopped"  # whether it was stopped early
    ERROR = "error"  # what went wrong
    SURPLUS = "surplus"  # whether it was one too many


KEPT = (Note.RUN, Note.GRID, Note.CONFIG, Note.BEGUN)  # when a trial is run again


def open_storage(place: str, folder: Path, name: str) -> BaseStorage:
    """Where trials are kept: a database by its URL, or a journal in a folder, by default the sweep's own."""
    if "://" in place:
        try:
            return RDBStorage(place)
        except Exception as error:  # of SQLAlchemy, of a driver that is missing, or of the database
            raise StackError(f"--study {place.partition('://')[0]}://…: {first_line(error)}") from None
    journal = Path(place) / f"{name}.log" if place else folder / "journal.log"
    journal.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(journal), grace_period=LOCK)
    _cut_torn_line(journal, lock)
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


def _cut_torn_line(journal: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a last line that a crash has left torn: Optuna would refuse the whole journal."""
    if not journal.exists() or journal.read_bytes()[-1:] in (b"", b"\n"):
        return
    with locked(lock):
        text = journal.read_bytes()
        os.truncate(journal, text.rfind(b"\n") + 1)


def lock_of(place: str) -> JournalFileOpenLock | None:
    """The lock under which a trial is asked for: SQLite has none of its own that would keep two from the same one."""
    path = place.removeprefix("sqlite:///")
    return JournalFileOpenLock(f"{path}.ask", grace_period=LOCK) if path != place else None


@contextmanager
def locked(lock: JournalFileOpenLock | None) -> Iterator[None]:
    """A block that one process at a time is in."""
    if lock is None:
        yield
        return
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_study(plan: Sweep, storage: BaseStorage, name: str, sampler: str = "tpe") -> optuna.Study:
    """The sweep's study, new or to go on with."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = StudyDirection.MINIMIZE if plan.goal == "minimize" else StudyDirection.MAXIMIZE
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    study.set_user_attr(WORKER + WORKER_ID, time.time())
    workers = sorted((at, name) for name, at in study.user_attrs.items() if name.startswith(WORKER))
    # Another one after each restart and for each process, or the same suggestions would come again.
    seed = len(study.get_trials(deepcopy=False)) + 1000 * workers.index(
        (study.user_attrs[WORKER + WORKER_ID], WORKER + WORKER_ID)
    )
    study.sampler = sampler_of(plan, sampler, seed)
    return study


def sampler_of(plan: Sweep, name: str, seed: int) -> optuna.samplers.BaseSampler:
    """What suggests a sweep's values."""
    if plan.method != "bayes":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class Trials:
    """A sweep's trials as one of the processes sees them that work on it."""

    def __init__(self, plan: Sweep, study: optuna.Study, lock: JournalFileOpenLock | None = None) -> None:
        self.plan, self.study, self.lock = plan, study, lock
        self.points = list(plan.grid()) if plan.method == "grid" else []
        self.mine: dict[int, optuna.Trial] = {}
        self.values: dict[int, int] = {}
        self.renewed = time.monotonic()

    def all(self) -> list[FrozenTrial]:
        """Every trial but those that were one too many, or whose failure is mended."""
        mended = self.study.user_attrs.get(MENDED, 0)
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if Note.SURPLUS not in trial.user_attrs and not (trial.number < mended and trial.state == FAIL)
        ]

    def ended(self) -> list[FrozenTrial]:
        """The trials that count: those with a value, and those that failed by themselves."""
        return [trial for trial in self.all() if trial.state == COMPLETE or Note.ERROR in trial.user_attrs]

    def running(self) -> list[FrozenTrial]:
        """The trials under way, here or elsewhere."""
        return [trial for trial in self.all() if trial.state == RUNNING]

    def begin_anew(self) -> None:
        """Let failures count no more where no trial has gone well: whoever calls again has mended what was wrong."""
        if self.ended() and not any(trial.state == COMPLETE for trial in self.all()):
            self.study.set_user_attr(MENDED, len(self.study.get_trials(deepcopy=False)))

    def queue(self) -> None:
        """Queue the points of the grid that are neither done, nor under way, nor queued."""
        known = {
            trial.user_attrs.get(Note.GRID)
            for trial in self.all()
            if trial.state != FAIL or Note.ERROR in trial.user_attrs
        }
        for index, point in enumerate(self.points):
            if index not in known:
                self.study.enqueue_trial({}, user_attrs={Note.GRID: index, Note.CONFIG: point})

    def next(self, limit: int) -> Job | None:
        """The next trial; None where others have taken it, or all up to `limit`, in the same moment."""
        if self.points and not any(trial.state == WAITING for trial in self.all()):
            self.queue()
        with locked(self.lock):
            trial = self.study.ask()
        noted = trial.user_attrs
        begun = noted.get(Note.BEGUN, 0) + 1
        run = noted.get(Note.RUN) or f"{trial.number:04d}"
        lease = ((Note.OWNER, WORKER_ID), (Note.UNTIL, time.time() + LEASE))
        for name, value in (*lease, (Note.BEGUN, begun), (Note.RUN, run)):
            trial.set_user_attr(name, value)
        if self._surplus(trial.number, noted.get(Note.GRID), limit):
            trial.set_user_attr(Note.SURPLUS, True)
            self.study.tell(trial, state=FAIL)
            return None
        config = noted[Note.CONFIG] if self.points else self.plan.suggest(trial)
        trial.set_user_attr(Note.CONFIG, config)
        self.mine[trial.number] = trial
        return Job(trial.number, config, run)

    def _surplus(self, number: int, point: int | None, limit: int) -> bool:
        """Whether others come before: as many as there are to be, or one with the same point of the grid."""
        before = [trial for trial in self.running() if trial.number < number] + self.ended()
        return len(before) >= limit or (
            bool(self.points) and (point is None or point in [trial.user_attrs.get(Note.GRID) for trial in before])
        )

    def report(self, number: int, value: float) -> str:
        """Note a value of a running trial; the order to give: on or stop."""
        early = self.plan.early
        if early is None or not is_number(value):
            return "on"
        step = self.values.get(number, 0)
        self.values[number] = step + 1
        try:
            self.mine[number].report(value, step)
        except UpdateFinishedTrialError:  # the lease was over, and another has it now
            return "stop"
        sign = 1 if self.plan.goal == "minimize" else -1
        histories = {
            trial.number: [sign * seen for _, seen in sorted(trial.intermediate_values.items())] for trial in self.all()
        }
        return "stop" if early.stops(histories[number], list(histories.values())) else "on"

    def adopt(self, run: str, config: dict[str, Any], history: list[float], value: float) -> bool:
        """Count a trial that was run elsewhere; False where it counts already. Optuna learns nothing from it."""
        if any(trial.user_attrs.get(Note.RUN) == run for trial in self.all()):
            return False
        noted: dict[str, Any] = {Note.RUN: run, Note.CONFIG: config}
        noted |= {Note.GRID: self.points.index(config)} if config in self.points else {}
        self.study.add_trial(create_trial(value=value, intermediate_values=dict(enumerate(history)), user_attrs=noted))
        return True

    def end(self, number: int, value: float, stopped: bool) -> None:
        """A trial has ended with a value; it does not count where it has lost its lease."""
        self._end(number, {Note.STOPPED: True} if stopped else {}, COMPLETE, value)

    def fail(self, number: int, text: str) -> None:
        """A trial has failed by itself."""
        self._end(number, {Note.ERROR: text}, FAIL)

    def again(self, number: int) -> bool:
        """Put a trial back whose process died; False where that has happened too often."""
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
        if self.points:
            self.queue()
        else:
            kept: dict[str, Any] = {name: noted[name] for name in KEPT if name in noted}
            self.study.enqueue_trial(params, user_attrs=kept)

    def renew(self) -> None:
        """Renew the leases of the trials that run here, now and then."""
        if time.monotonic() - self.renewed < RENEWED:
            return
        self.renewed = time.monotonic()
        for trial in self.mine.values():
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(Note.UNTIL, time.time() + LEASE)

    def reclaim(self) -> None:
        """Requeue the trials whose process has ended."""
        for trial in self.running():
            if trial.number in self.mine or not self._abandoned(trial):
                continue
            try:
                self.study.tell(trial.number, state=FAIL)
            except (UpdateFinishedTrialError, ValueError):  # another was quicker
                continue
            self._requeue(trial.params, trial.user_attrs)

    def _abandoned(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs a trial any more."""
        owner = trial.user_attrs.get(Note.OWNER, "")
        if owner and not _present(owner):
            return True
        until = trial.user_attrs.get(
            Note.UNTIL, trial.datetime_start.timestamp() + LEASE if trial.datetime_start else 0
        )
        workers = (name.removeprefix(WORKER) for name in self.study.user_attrs if name.startswith(WORKER))
        others = (worker for worker in workers if worker != WORKER_ID)
        return bool(time.time() > until) or not (owner or any(map(_present, others)))


def _present(owner: str) -> bool:
    """Whether a process is there; of one on another machine nobody knows."""
    host, _, pid = owner.rpartition(":")
    return host != HOST or alive(int(pid))


def entry(trial: FrozenTrial) -> dict[str, Any]:
    """A trial that counts, for the table."""
    noted = trial.user_attrs
    state = "failed" if trial.state == FAIL else "stopped" if noted.get(Note.STOPPED) else "finished"
    return {
        "trial": trial.number,
        "state": state,
        "value": trial.value,
        "config": noted.get(Note.CONFIG, {}),
        "error": noted.get(Note.ERROR, ""),
    }
