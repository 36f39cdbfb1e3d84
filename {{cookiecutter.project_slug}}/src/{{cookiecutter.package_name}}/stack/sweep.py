"""A sweep without an account: the trials of a sweep.yaml on Optuna, several at a time, resumable after a kill."""

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from . import StackError, pictures
from .console import say
from .pids import alive
from .space import Sweep, read_sweep
from .tracking import open_run
from .workers import Job, Workers

if TYPE_CHECKING:
    from .science import Science
    from .settings import Settings

BEST, TABLE = "best.json", "trials.json"
CAP = 20  # trials of a random or bayes sweep whose file names no run_cap
LOCK = 5  # seconds after which a lock was left by a process that was killed
HOPELESS = 3  # trials that may fail before the first success
HERE = f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Swept:
    """What a sweep found: the best configuration and where all of it is kept."""

    metric: str
    best_value: float
    best_config: Path
    folder: Path
    trials: list[dict[str, Any]]
    tracked: str

    def header(self) -> list[str]:
        """The titles of the table."""
        return ["trial", "state", self.metric, *_flat(self.trials[0]["config"])]

    def rows(self, count: int = 10) -> list[list[object]]:
        """The best trials, a row each."""
        return [
            [
                trial["trial"],
                trial["state"],
                _short(trial["value"]),
                *map(_short, _flat(trial["config"]).values()),
            ]
            for trial in self.trials[:count]
        ]


def sweep(science: "Science", settings: "Settings", file: Path, workers: int = 2, cap: int = 0) -> Swept:
    """Run the trials of a sweep file, `workers` at a time, and keep the best configuration.

    Started again with the same file, it goes on; trials whose process died are run again. `cap` overrides the
    file's run_cap. Raises StackError for a wrong file, or if every trial fails.
    """
    plan = read_sweep(file)
    folder = sweep_folder(settings, file)
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(plan, folder)
    reclaim(study)
    total = enqueue_grid(plan, study) if plan.method == "grid" else CAP
    limit = cap or plan.run_cap or total
    if plan.method == "grid":
        limit = min(limit, total)
    with Workers(science, settings, folder / "trials", plan.metric, max(1, min(workers, limit))) as crew:
        run_trials(plan, study, crew, limit)
    return conclude(plan, study, settings, folder)


def sweep_folder(settings: "Settings", file: Path) -> Path:
    """Where the trials of a sweep file are kept: another file, or another content, is another sweep."""
    return settings.runs / f"sweep-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def open_study(plan: Sweep, folder: Path) -> optuna.Study:
    """The sweep's study in its journal file, new or to go on with."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(folder / "journal.log")
    lock = JournalFileOpenLock(journal, grace_period=LOCK)
    storage = JournalStorage(JournalFileBackend(journal, lock_obj=lock))
    direction = StudyDirection.MINIMIZE if plan.goal == "minimize" else StudyDirection.MAXIMIZE
    study = optuna.create_study(study_name="sweep", storage=storage, direction=direction, load_if_exists=True)
    seed = len(study.trials)  # another one after each restart, or the first suggestions would come again
    bayes = plan.method == "bayes"
    study.sampler = (
        optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        if bayes
        else optuna.samplers.RandomSampler(seed=seed)
    )
    return study


def reclaim(study: optuna.Study) -> None:
    """Put trials back in the queue whose process on this machine is no more."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = trial.user_attrs.get("owner", f"{socket.gethostname()}:0").rpartition(":")
        if host == socket.gethostname() and not alive(int(pid)):
            attrs = {
                key: value for key, value in trial.user_attrs.items() if key in ("run", "grid", "config")
            }
            study.enqueue_trial(trial.params, user_attrs=attrs)
            study.tell(trial.number, state=TrialState.FAIL)


def enqueue_grid(plan: Sweep, study: optuna.Study) -> int:
    """Queue the points of a grid that were never queued; returns how many points it has."""
    known = {trial.user_attrs.get("grid") for trial in study.get_trials(deepcopy=False)}
    points = list(plan.grid())
    for index, point in enumerate(points):
        if index not in known:
            study.enqueue_trial({}, user_attrs={"grid": index, "config": point})
    return len(points)


def run_trials(plan: Sweep, study: optuna.Study, crew: Workers, limit: int) -> None:
    """Keep the workers busy until `limit` trials have ended well, or the target is met."""
    failed = 0
    while True:
        finished = _ended(study)
        wanted = limit - len(finished) - len(crew.busy)
        if _on_target(plan, finished):
            wanted = 0
        for _ in range(min(wanted, len(crew.free))):
            crew.submit(_next_job(plan, study))
        if not crew.busy:
            return
        for number, what, value in crew.events():
            if what == "value":
                crew.answer(number, _report(plan, study, number, value))
            elif what == "failed":
                failed += 1
                _set_attr(study, number, "error", value)
                study.tell(number, state=TrialState.FAIL)
                say(f"Trial {number} failed: {value.strip().splitlines()[-1]}")
                if failed >= HOPELESS and not _ended(study):
                    raise StackError(
                        f"the first {failed} trials all failed; mend this first: {value.strip()}"
                    )
            else:
                _set_attr(study, number, "stopped", what == "stopped")
                study.tell(number, value)
                say(
                    f"Trial {number}: {plan.metric} {value:.4f}"
                    + (", stopped early" if what == "stopped" else "")
                )


def conclude(plan: Sweep, study: optuna.Study, settings: "Settings", folder: Path) -> Swept:
    """Write the best configuration, the table and the pictures of a sweep."""
    sign = 1 if plan.goal == "minimize" else -1
    ended = sorted(_ended(study), key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    trials = [_entry(trial, "stopped" if trial.user_attrs.get("stopped") else "finished") for trial in ended]
    if not trials:
        raise StackError("no trial has ended; see the messages above")
    trials += [_entry(trial, "failed") for trial in failed if "error" in trial.user_attrs]
    (folder / BEST).write_text(json.dumps(trials[0]["config"], indent=1), encoding="utf-8")
    (folder / TABLE).write_text(json.dumps(trials, indent=1), encoding="utf-8")
    weights = _importance(study)
    drawn = pictures.sweep(
        [t for t in trials if t["state"] != "failed"], weights, plan.metric, folder / "sweep.png"
    )
    run = open_run(settings, f"{folder.name}-{len(trials)}", "sweep", folder, dict(plan.whole))
    run.picture("sweep", drawn)
    run.summary(
        trials=len(trials), failed=len(failed), best=trials[0]["value"], best_config=trials[0]["config"]
    )
    return Swept(plan.metric, trials[0]["value"], folder / BEST, folder, trials, run.finish())


def _next_job(plan: Sweep, study: optuna.Study) -> Job:
    trial = study.ask()
    config = trial.user_attrs["config"] if "grid" in trial.user_attrs else plan.suggest(trial)
    run = trial.user_attrs.get("run") or f"{trial.number:04d}"
    for name, value in (("config", config), ("run", run), ("owner", HERE)):
        trial.set_user_attr(name, value)
    return Job(trial.number, config, run)


def _report(plan: Sweep, study: optuna.Study, number: int, value: float) -> str:
    """Note a value of a running trial; the order to give: on or stop."""
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    running = optuna.Trial(study, trials[number]._trial_id)
    running.report(value, step=len(trials[number].intermediate_values))
    if plan.early is None:
        return "on"
    sign = 1 if plan.goal == "minimize" else -1
    histories = {
        trial.number: [sign * seen for _, seen in sorted(trial.intermediate_values.items())]
        for trial in study.get_trials(deepcopy=False)
    }
    return "stop" if plan.early.stops(histories[number], list(histories.values())) else "on"


def _ended(study: optuna.Study) -> Sequence[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _on_target(plan: Sweep, finished: Sequence[FrozenTrial]) -> bool:
    values = [trial.value for trial in finished if trial.value is not None]
    if plan.target is None or not values:
        return False
    return min(values) <= plan.target if plan.goal == "minimize" else max(values) >= plan.target


def _set_attr(study: optuna.Study, number: int, name: str, value: Any) -> None:
    trial = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    study._storage.set_trial_user_attr(trial._trial_id, name, value)


def _entry(trial: FrozenTrial, state: str) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": state,
        "value": trial.value,
        "config": trial.user_attrs.get("config", {}),
        "error": trial.user_attrs.get("error", ""),
    }


def _importance(study: optuna.Study) -> dict[str, float]:
    """How much each parameter mattered, 0 to 1; empty where there are too few trials to tell."""
    ended = _ended(study)
    if len(ended) < 4 or len({trial.value for trial in ended}) == 1 or not ended[0].params:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
