"""A sweep: by W&B and its agents where a key works, else here, from the same sweep.yaml and to the same files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.console import display_path, say
from free_ml_stack.errors import StackError
from free_ml_stack.evaluation import plots as pictures
from free_ml_stack.storage.documents import as_json
from free_ml_stack.sweeps.search_space import Parameter, Sweep, looked_up
from free_ml_stack.sweeps.sweep_file import parse_sweep, read_sweep
from free_ml_stack.tracking.opening import open_run, reachable
from free_ml_stack.tracking.trackio_tracker import require_trackio

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings
    from free_ml_stack.sweeps.trials import Trials
    from free_ml_stack.sweeps.workers import Workers

BEST, TABLE = "best.json", "trials.json"
CAP = 20  # trials of a random or bayes sweep whose file names no run_cap
HOPELESS = 3  # trials that may fail before the first success
PULSE = 1.0  # seconds between two looks at what the other machines do
FAILED = "failed"


@dataclass(frozen=True)
class Options:
    """What the command line says of a sweep besides its file."""

    agents: int = 2  # trials at the same time
    trials: int = 0  # instead of the file's run_cap
    join: str = ""  # a sweep at W&B
    study: str = ""  # where trials are kept: a database's URL, or a folder that machines share
    sampler: str = "tpe"
    seconds: float = 0.0  # that a trial may take


@dataclass(frozen=True)
class Swept:
    """What a sweep found: the best configuration and where all of it is kept."""

    metric: str
    best_value: float
    best_config: Path
    folder: Path
    trials: list[dict[str, Any]]
    tracked: str
    plan: Sweep

    def header(self) -> list[str]:
        """The titles of the table."""
        return ["trial", "state", self.metric, *(parameter.name for parameter in self.plan.parameters)]

    def rows(self, count: int = 10) -> list[list[object]]:
        """The best trials, a row each."""
        return [
            [
                trial["trial"],
                trial["state"],
                _short(trial["value"]),
                *map(_short, _flat(trial["config"], self.plan.parameters).values()),
            ]
            for trial in self.trials[:count]
        ]


def sweep(science: "Science", settings: "Settings", file: Path, options: Options) -> Swept:
    """Run the trials of a sweep file and keep the best configuration.

    Started again with the same file, it goes on; trials whose process died are run again. Raises StackError for a
    wrong file, or if every trial fails.
    """
    if settings.tracker == "trackio":  # told before the trials, which don't need it
        require_trackio()
    online = settings.tracker == "wandb" and settings.wandb_mode in ("", "online") and reachable(settings)
    if options.join:
        if not online:
            raise StackError(f"--join needs a key for W&B that works; `{settings.command} doctor` says more")
        return join(settings, options)
    from free_ml_stack.sweeps.command import is_own

    plan = read_sweep(file)
    folder = sweep_folder(settings, file)
    folder.mkdir(parents=True, exist_ok=True)
    if is_own(plan, science.package):  # that there is no data is told once, and not by each trial
        from free_ml_stack.data import dataset  # which imports torch
        from free_ml_stack.storage.stores import open_store

        dataset.read(open_store(settings.storage, settings), settings.private / "cache", settings.command)
    trials = None
    if online and not options.study:
        trials = sweep_online(science, settings, plan, folder, options)
    if trials is None:
        trials = sweep_here(science, settings, plan, folder, options)
    return conclude(plan, trials, settings, folder)


def sweep_online(
    science: "Science", settings: "Settings", plan: Sweep, folder: Path, options: Options
) -> list[dict[str, Any]] | None:
    """Run a sweep by W&B and its agents; returns its trials, None where W&B is lost on the way, which is said."""
    from free_ml_stack.sweeps import agents

    cap = 0 if plan.run_cap or plan.method == "grid" else CAP
    try:
        place = agents.make(settings, plan, science.package, folder, options.trials, cap)
        return with_earlier(folder, agents.sweep_at_wandb(settings, plan, place, folder, options.agents))
    except ConnectionError as error:
        say(f"W&B: {error}. The sweep goes on here.")
        return None


def with_earlier(folder: Path, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of a sweep with those of the same file's sweeps before it, which W&B keeps apart once one is over."""
    table = folder / TABLE
    known = {trial["run"] for trial in trials}
    before = json.loads(table.read_bytes()) if table.exists() else []
    earlier = [trial for trial in before if trial.get("run") not in known]
    return [{**trial, "trial": number} for number, trial in enumerate([*earlier, *trials])]


def join(settings: "Settings", options: Options) -> Swept:
    """Run more agents on a sweep at W&B that was made here or elsewhere."""
    from free_ml_stack.sweeps import agents

    try:
        place, text = agents.definition(options.join)
        plan = parse_sweep(text, options.join)
        folder = settings.runs / f"sweep-{options.join.rpartition('/')[2]}"
        folder.mkdir(parents=True, exist_ok=True)
        trials = agents.sweep_at_wandb(settings, plan, place, folder, options.agents)
    except ConnectionError as error:
        raise StackError(f"W&B: {error}; run it again later") from None
    return conclude(plan, trials, settings, folder)


def sweep_folder(settings: "Settings", file: Path) -> Path:
    """Where the trials of a sweep file are kept: another file, or another content, is another sweep."""
    return settings.runs / f"sweep-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def sweep_here(
    science: "Science", settings: "Settings", plan: Sweep, folder: Path, options: Options
) -> list[dict[str, Any]]:
    """Run a sweep on this machine, and on all others that share its trials; returns them."""
    from free_ml_stack.sweeps.agents import tried
    from free_ml_stack.sweeps.job import Task
    from free_ml_stack.sweeps.trials import Trials, entry, lock_of, open_storage, open_study
    from free_ml_stack.sweeps.workers import Workers

    storage = open_storage(options.study, folder, folder.name)
    study = open_study(plan, storage, folder.name, options.sampler)
    trials = Trials(plan, study, lock_of(options.study))
    trials.begin_anew()
    if adopted := sum(trials.adopt(*trial) for trial in tried(settings, plan, folder)):
        say(f"Trials that W&B's agents have run here: {adopted}. They count.")
    limit = options.trials or plan.run_cap or len(trials.points) or CAP
    limit = min(limit, len(trials.points) or limit)
    count = max(1, min(options.agents, limit))
    with Workers(Task(science, settings, plan, folder), count, options.seconds) as crew:
        run_trials(trials, crew, limit)
    return [entry(trial) for trial in trials.ended()]


def run_trials(trials: "Trials", crew: "Workers", limit: int) -> None:
    """Keep the workers busy until `limit` trials have ended, here or elsewhere, or the target is met."""
    failed = 0
    while True:
        trials.reclaim()
        ended, running = trials.ended(), trials.running()
        wanted = 0 if on_target(trials.plan, ended) else limit - len(ended) - len(running)
        for _ in range(min(wanted, len(crew.free))):
            if job := trials.next(limit):
                crew.submit(job)
        if not crew.busy and wanted <= 0 and not running:
            return
        for number, what, value in crew.events(PULSE):
            if what == "value":
                crew.answer(number, trials.report(number, value))
            elif what in ("done", "stopped"):
                trials.end(number, value, what == "stopped")
                early = ", stopped early" if what == "stopped" else ""
                say(f"Trial {number}: {trials.plan.metric} {value:.4f}{early}")
            elif what == "died" and trials.again(number):
                say(f"Trial {number}: {value}; it is begun again.")
            else:
                trials.fail(number, value)
                failed += 1
                say(f"Trial {number} failed: {value.strip().splitlines()[-1]}")
                if failed >= HOPELESS and not any(trial.value is not None for trial in trials.ended()):
                    raise StackError(f"the first {failed} trials all failed; mend this first: {value.strip()}")
        trials.renew()


def on_target(plan: Sweep, ended: Sequence[Any]) -> bool:
    """Whether a trial has reached the value that the sweep file names as its target."""
    values: list[float] = [trial.value for trial in ended if trial.value is not None]
    if plan.target is None or not values:
        return False
    return min(values) <= plan.target if plan.goal == "minimize" else max(values) >= plan.target


def conclude(plan: Sweep, trials: list[dict[str, Any]], settings: "Settings", folder: Path) -> Swept:
    """Write the best configuration, the table and the picture of a sweep."""
    sign = 1 if plan.goal == "minimize" else -1
    if not trials:
        raise StackError("the sweep is over without a trial")
    good = [trial for trial in trials if trial["state"] != FAILED]
    good.sort(key=lambda trial: (sign * trial["value"], trial["trial"]))
    failed = [trial for trial in trials if trial["state"] == FAILED]
    ordered, table = good + failed, folder / TABLE
    table.write_bytes(as_json(ordered))
    if not good:
        raise StackError(f"no trial has ended well; see the messages above, and {display_path(table)}")
    if failed:
        say(f"{len(failed)} of {len(trials)} trials failed; {display_path(table)} says why.")
    best = good[0]
    (folder / BEST).write_bytes(as_json(best["config"]))
    flat = [{**trial, "config": _flat(trial["config"], plan.parameters)} for trial in good]
    drawn = pictures.sweep(flat, importance(plan, good), plan.metric, folder / "sweep.png")
    run = open_run(settings, f"{folder.name}-{len(ordered)}", "sweep", folder, dict(plan.whole))
    run.picture("sweep", drawn)
    run.summary(trials=len(ordered), failed=len(failed), best=best["value"], best_config=best["config"])
    return Swept(plan.metric, best["value"], folder / BEST, folder, ordered, run.finish(), plan)


def importance(plan: Sweep, trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How much each parameter mattered, 0 to 1; empty where there are too few trials to tell."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import create_trial

    columns = {
        parameter.name: [looked_up(trial["config"], parameter.path) for trial in trials]
        for parameter in plan.parameters
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
    """A configuration with a value for each parameter; it may be a table itself."""
    return {parameter.name: looked_up(config, parameter.path) for parameter in parameters}


def _short(value: Any) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
