"""Sweeps: run by W&B's agents if a key works, otherwise locally, from the same sweep.yaml to the same files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.console import display_path, say
from free_ml_stack.data import dataset
from free_ml_stack.errors import StackError
from free_ml_stack.evaluation import plots as pictures
from free_ml_stack.evaluation.result import metric_text
from free_ml_stack.project.flags import unknown
from free_ml_stack.storage.documents import as_json
from free_ml_stack.storage.stores import open_store
from free_ml_stack.sweeps.command import runs_train
from free_ml_stack.sweeps.job import EventKind, Task
from free_ml_stack.sweeps.search_space import Parameter, Sweep, lookup
from free_ml_stack.sweeps.sweep_file import parse_sweep, read_sweep
from free_ml_stack.tracking.opening import open_run, reachable
from free_ml_stack.tracking.trackio_tracker import require_trackio

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings
    from free_ml_stack.sweeps.trials import Trials
    from free_ml_stack.sweeps.workers import Workers

BEST, TABLE = "best.json", "trials.json"
DEFAULT_RUN_CAP = 20  # trials of a random or bayes sweep without run_cap
MAX_FIRST_FAILURES = 3  # failed trials after which a sweep without success is aborted
POLL = 1.0  # seconds between two checks of the trials of other machines
FAILED = "failed"


@dataclass(frozen=True)
class SweepOptions:
    """Command-line options of a sweep."""

    agents: int = 2  # number of parallel trials
    trials: int = 0  # overrides the file's run_cap
    join: str = ""  # ENTITY/PROJECT/ID of a sweep at W&B
    study: str = ""  # storage of the trials: a database URL, or a shared folder
    sampler: str = "tpe"
    seconds: float = 0.0  # time limit of a trial


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep: the best configuration, the trials and their folder."""

    metric: str
    best_value: float
    best_config: Path
    folder: Path
    trials: list[dict[str, Any]]
    tracked: str
    plan: Sweep

    def header(self) -> list[str]:
        """Return the column titles of the table."""
        return ["trial", "state", self.metric, *(parameter.name for parameter in self.plan.parameters)]

    def rows(self, count: int = 10) -> list[list[object]]:
        """Return the rows of the best trials."""
        return [
            [
                trial["trial"],
                trial["state"],
                _short(trial["value"]),
                *map(_short, _flat(trial["config"], self.plan.parameters).values()),
            ]
            for trial in self.trials[:count]
        ]


def sweep(science: "Science", settings: "Settings", file: Path, options: SweepOptions) -> SweepResult:
    """Run the trials of a sweep file and write the best configuration.

    Continues an unfinished sweep of the same file and data set, including trials whose process died. Raises StackError
    for an invalid file, or if every trial fails.
    """
    if settings.tracker == "trackio":  # checked before the trials, which do not use it
        require_trackio()
    online = settings.tracker == "wandb" and settings.wandb_mode in ("", "online") and reachable(settings)
    if options.join:
        if not online:
            raise StackError(f"--join requires a valid W&B key; run `{settings.command} doctor` for details")
        return join(settings, options)
    plan = read_sweep(file)
    if runs_train(plan, science.package):  # report these errors once, not in each trial
        check_parameters(plan, science.config, file)
        dataset.load(science, settings, open_store(settings.storage, settings))
    folder = sweep_folder(science, settings, file)
    folder.mkdir(parents=True, exist_ok=True)
    trials = None
    if online and not options.study:
        trials = sweep_online(science, settings, plan, folder, options)
    if trials is None:
        trials = sweep_locally(science, settings, plan, folder, options)
    return write_results(plan, trials, settings, folder)


def check_parameters(plan: Sweep, config: type, file: Path) -> None:
    """Raise StackError for a parameter that `train` does not have."""
    names = [field.name for field in fields(config)]
    for parameter in plan.parameters:
        if parameter.path[1:]:
            raise StackError(f"{display_path(file)}: parameter {parameter.name}: `train` has no nested settings")
        if parameter.name not in names:
            raise StackError(f"{display_path(file)}: {unknown(parameter.name, names)}")


def sweep_online(
    science: "Science", settings: "Settings", plan: Sweep, folder: Path, options: SweepOptions
) -> list[dict[str, Any]] | None:
    """Run a sweep with W&B's agents; return its trials, or None, with a message, if W&B becomes unreachable."""
    from free_ml_stack.sweeps import agents

    cap = 0 if plan.run_cap or plan.method == "grid" else DEFAULT_RUN_CAP
    try:
        place = agents.find_or_create(settings, plan, science.package, folder, options.trials, cap)
        return merge_earlier(folder, agents.run_at_wandb(settings, plan, place, folder, options.agents))
    except ConnectionError as error:
        say(f"W&B: {error}. Continuing the sweep on this machine without W&B.")
        return None


def merge_earlier(folder: Path, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the trials of earlier W&B sweeps of the same file, which W&B keeps separate once one is finished."""
    table = folder / TABLE
    known = {trial["run"] for trial in trials}
    before = json.loads(table.read_bytes()) if table.exists() else []
    earlier = [trial for trial in before if trial.get("run") not in known]
    return [{**trial, "trial": number} for number, trial in enumerate([*earlier, *trials])]


def join(settings: "Settings", options: SweepOptions) -> SweepResult:
    """Run agents on an existing sweep at W&B."""
    from free_ml_stack.sweeps import agents

    try:
        place, text = agents.read_definition(options.join)
        plan = parse_sweep(text, options.join)
        folder = settings.runs / f"sweep-{options.join.rpartition('/')[2]}"
        folder.mkdir(parents=True, exist_ok=True)
        trials = agents.run_at_wandb(settings, plan, place, folder, options.agents)
    except ConnectionError as error:
        raise StackError(f"W&B: {error}; try again later") from None
    return write_results(plan, trials, settings, folder)


def sweep_folder(science: "Science", settings: "Settings", file: Path) -> Path:
    """Return the folder of a sweep's trials, named after its file and, if they run `train`, the data set.

    Trials with different data sets are not comparable.
    """
    trains = runs_train(read_sweep(file), science.package)
    found = dataset.stored(open_store(settings.storage, settings)) if trains else {}
    data = dataset.fingerprint(found) if found else ""
    return settings.runs / f"sweep-{hashlib.sha256(file.read_bytes() + data.encode()).hexdigest()[:8]}"


def sweep_locally(
    science: "Science", settings: "Settings", plan: Sweep, folder: Path, options: SweepOptions
) -> list[dict[str, Any]]:
    """Run a sweep on this machine and all others that share its trials; return the trials."""
    from free_ml_stack.sweeps.agents import local_trials
    from free_ml_stack.sweeps.shared import ask_lock, open_storage
    from free_ml_stack.sweeps.trials import Trials, open_study, table_row
    from free_ml_stack.sweeps.workers import Workers

    storage = open_storage(options.study, folder, folder.name)
    study = open_study(plan, storage, folder.name, options.sampler)
    trials = Trials(plan, study, ask_lock(options.study))
    trials.reset_failures()
    if adopted := sum(trials.adopt(*trial) for trial in local_trials(settings, plan, folder)):
        say(f"Trials of W&B's agents on this machine, included in the sweep: {adopted}.")
    limit = options.trials or plan.run_cap or len(trials.points) or DEFAULT_RUN_CAP
    limit = min(limit, len(trials.points) or limit)
    if len(done := trials.ended()) >= limit or target_reached(plan, done):
        more = "" if limit == len(trials.points) else "; for more, run `sweep --trials N` or raise run_cap"
        say(f"The sweep is complete: {len(done)} trials{more}.")
        return [table_row(trial) for trial in done]
    count = max(1, min(options.agents, limit))
    with Workers(Task(science, settings, plan, folder), count, options.seconds) as workers:
        run_trials(trials, workers, limit)
    return [table_row(trial) for trial in trials.ended()]


def run_trials(trials: "Trials", workers: "Workers", limit: int) -> None:
    """Keep the workers busy until `limit` trials have ended, on any machine, or the target is reached."""
    failed = 0
    while True:
        trials.reclaim()
        ended, running = trials.ended(), trials.running()
        wanted = 0 if target_reached(trials.plan, ended) else limit - len(ended) - len(running)
        for _ in range(min(wanted, len(workers.free))):
            if job := trials.next(limit):
                workers.submit(job)
        if not workers.busy and wanted <= 0 and not running:
            return
        for number, kind, value in workers.events(POLL):
            if kind == EventKind.VALUE:
                workers.answer(number, trials.report(number, value))
            elif kind in (EventKind.DONE, EventKind.STOPPED):
                trials.end(number, value, kind == EventKind.STOPPED)
                early = ", stopped early" if kind == EventKind.STOPPED else ""
                say(f"Trial {number}: {trials.plan.metric} {metric_text(value)}{early}")
            elif kind == EventKind.DIED and trials.retry(number):
                say(f"Trial {number}: {value}; retrying it.")
            else:
                trials.fail(number, value)
                failed += 1
                say(f"Trial {number} failed: {value.strip().splitlines()[-1]}")
                if failed >= MAX_FIRST_FAILURES and not any(trial.value is not None for trial in trials.ended()):
                    raise StackError(f"the first {failed} trials all failed; fix this error first: {value.strip()}")
        trials.renew()


def target_reached(plan: Sweep, ended: Sequence[Any]) -> bool:
    """Return whether a trial has reached the target of the sweep file."""
    values: list[float] = [trial.value for trial in ended if trial.value is not None]
    if plan.target is None or not values:
        return False
    return min(values) <= plan.target if plan.goal == "minimize" else max(values) >= plan.target


def write_results(plan: Sweep, trials: list[dict[str, Any]], settings: "Settings", folder: Path) -> SweepResult:
    """Write the best configuration, the table and the picture of a sweep."""
    sign = 1 if plan.goal == "minimize" else -1
    if not trials:
        raise StackError("the sweep finished without any trial")
    good = [trial for trial in trials if trial["state"] != FAILED]
    good.sort(key=lambda trial: (sign * trial["value"], trial["trial"]))
    failed = [trial for trial in trials if trial["state"] == FAILED]
    ordered, table = good + failed, folder / TABLE
    table.write_bytes(as_json(ordered))
    if not good:
        reason = (failed[0]["error"].strip() or "no error message").splitlines()[-1]
        raise StackError(f"all trials failed (trial {failed[0]['trial']}: {reason}); see {display_path(table)}")
    if failed:
        say(f"{len(failed)} of {len(trials)} trials failed; see {display_path(table)} for the reasons.")
    best = good[0]
    (folder / BEST).write_bytes(as_json(best["config"]))
    flat = [{**trial, "config": _flat(trial["config"], plan.parameters)} for trial in good]
    drawn = pictures.sweep(flat, importance(plan, good), plan.metric, folder / "sweep.png")
    run = open_run(settings, f"{folder.name}-{len(ordered)}", "sweep", folder, dict(plan.whole))
    run.picture("sweep", drawn)
    run.summary(trials=len(ordered), failed=len(failed), best=best["value"], best_config=best["config"])
    return SweepResult(plan.metric, best["value"], folder / BEST, folder, ordered, run.finish(), plan)


def importance(plan: Sweep, trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Compute the importance of each parameter, 0 to 1; empty if there are too few trials."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import create_trial

    columns = {
        parameter.name: [lookup(trial["config"], parameter.path) for trial in trials] for parameter in plan.parameters
    }
    columns = {name: column for name, column in columns.items() if len({str(value) for value in column}) > 1}
    if len(trials) < 4 or len({trial["value"] for trial in trials}) == 1 or not columns:
        return {}
    kinds: dict[str, Any] = {}
    spread = {one.name for one in plan.parameters if "log_" in one.distribution}
    for name, column in columns.items():
        if all(isinstance(value, int | float) for value in column):
            kinds[name] = FloatDistribution(min(column), max(column), log=name in spread and min(column) > 0)
        else:
            columns[name] = [str(value) for value in column]
            kinds[name] = CategoricalDistribution(sorted(set(columns[name])))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if plan.goal == "minimize" else "maximize")
    for row, trial in enumerate(trials):
        params = {name: column[row] for name, column in columns.items()}
        study.add_trial(create_trial(params=params, distributions=kinds, value=trial["value"]))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _flat(config: Mapping[str, Any], parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Flatten a configuration to one value per parameter, which may itself be a dict."""
    return {parameter.name: lookup(config, parameter.path) for parameter in parameters}


def _short(value: Any) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
