"""One training run: sets up data, tracking and checkpoints for the loop, and saves its results."""

import argparse
import dataclasses
import gc
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.dirfs import DirFileSystem

from free_ml_stack.console import say
from free_ml_stack.data import dataset
from free_ml_stack.errors import PreemptedError, StackError
from free_ml_stack.hub import pretrained
from free_ml_stack.processes import GC_THRESHOLDS, termination_signals
from free_ml_stack.project.arguments import LATEST, check_run_name, new_id
from free_ml_stack.project.flags import read, read_json
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking import lineage, provenance
from free_ml_stack.tracking.opening import open_run
from free_ml_stack.tracking.run import FACTS, NoRecord, Run
from free_ml_stack.tracking.tracker import PREEMPTED, RunStoppedError, Tracker
from free_ml_stack.training import outcome
from free_ml_stack.training.checkpoint import Checkpoints, changed_fields
from free_ml_stack.training.outcome import MODEL, RESULT
from free_ml_stack.training.process import Process, join
from free_ml_stack.training.snapshot import STATE

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

CONFIG = "config.json"
DATA = "data.json"
RESUME = PREEMPTED  # EX_TEMPFAIL of sysexits.h: the run can be resumed


def train(
    science: "Science",
    config: Any,
    settings: "Settings",
    run_id: str = "",
    folder: Path | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Train with `config` and return the run's result, as written to `<folder>/<run>/result.json`.

    `run_id` is the run to resume; without it, a new run starts. `folder` and `tracker` override the configured folder
    of runs and tracker, for trials of a sweep. Raises PreemptedError after SIGTERM or Ctrl-C, and RunStoppedError if
    the tracker stops the run.
    """
    runs = folder or settings.runs
    store, fresh = open_store(settings.storage, settings), not (run_id or settings.restarts)
    with join(settings, config.device, config.threads) as process:
        batch = getattr(config, "batch_size", process.size)
        if batch % process.size:
            raise StackError(f"batch_size: expected a multiple of the {process.size} processes, got {batch}")
        run_id = process.agree(run_id or (_new_run(runs, settings) if process.first else ""))
        splits, facts = process.first_then_all(lambda: dataset.load(science, settings, store))
        places = process.agree(pretrained.pinned_locations(asdict(config), settings) if process.first else {})
        config = replace_fields(config, **places)
        values = asdict(config)
        started = {**values, "data": dataset.fingerprint(facts)}
        if process.first:
            _check_run(runs, run_id, started, settings.command)
        if process.first and folder is None:
            say(f"Run {run_id}: {process}.")
            if (runs / run_id / RESULT).exists():
                say(f"Run {run_id} is finished; evaluating it again.")
        run = _open(settings, runs / run_id, started, process, tracker)
        run.shown = process.first and folder is None
        if run.tracked:
            (run.folder / DATA).write_text(json.dumps(facts, indent=1), encoding="utf-8")
            lineage.data(run, run.folder / DATA, dataset.fingerprint(facts))
        checkpoints = Checkpoints(
            runs / run_id / "checkpoints",
            run.record,
            started,
            config.checkpoint_seconds,
            config.checkpoint_steps,
            store=DirFileSystem(f"checkpoints/{run_id}", fs=store) if folder is None else None,
            process=process,
            fresh=fresh,
            weights=lambda place: pretrained.weights(place, settings),
        )
        model = _fit(science, config, splits, run, checkpoints, process, settings.command)
        result = {
            "run": run_id,
            "config": values,
            "data": {"sha256": dataset.fingerprint(facts)} | {key: facts[key] for key in ("name", "source", "rows")},
            "steps": checkpoints.at.step,
            "seconds": round(checkpoints.elapsed(), 3),
            "processes": process.size,
            **_size(model),
            "commit": provenance.commit(settings.root),
            "environment": provenance.environment(),
            "machine": provenance.machine(str(process.device)),
        }
        if process.first:
            result, judged = outcome.save_outcome(science, config, model, splits, run, result)
            if folder is None and not settings.wandb_sweep:  # trials are not published
                # before waiting for W&B, so that an interrupt of the wait does not lose the model
                replace(runs / LATEST, run_id.encode())
            if folder is None:  # trials have no pictures
                outcome.draw_outcome(run, judged)
            if run.tracked:
                saved = sorted(path for path in (run.folder / MODEL).rglob("*") if path.is_file())
                lineage.trained(run, [*saved, run.folder / CONFIG, run.folder / RESULT])
            result["tracked"] = run.finish()
    return result


def _size(model: Any) -> dict[str, int]:
    """Return the number of parameters of a torch module; nothing for other models."""
    found = getattr(model, "parameters", None)
    return {"parameters": sum(parameter.numel() for parameter in found())} if found else {}


def report_early_failure(settings: "Settings", run_id: str) -> None:
    """Report a trial that failed before its run was opened to the tracker; the sweep would wait for it otherwise."""
    if not (settings.runs / run_id / CONFIG).exists():
        open_run(settings, run_id, "train", settings.runs / run_id, {}).finish(exit_code=1)


def _check_run(runs: Path, run_id: str, config: Mapping[str, Any], command: str) -> None:
    """Raise StackError for an invalid run id, or for a run that was started with another configuration.

    Called before anything is opened, so that a rejected run is not changed.
    """
    check_run_name(run_id)
    path = runs / run_id / CONFIG
    before = read_json(path) if path.exists() else config
    changed = changed_fields(before, config)
    if changed and (runs / run_id / RESULT).exists():
        raise StackError(f"run {run_id} is finished, with {changed}; choose another --name")
    if changed:
        same_data = before.get("data") == config["data"]
        remedy = f"resume it with `{command} train --run {run_id}`" if same_data else "restore the data set"
        raise StackError(f"run {run_id} was started with {changed}; {remedy}, or choose another --name")


def _open(
    settings: "Settings", folder: Path, config: Mapping[str, Any], process: Process, tracker: Tracker | None
) -> Run:
    """Open the run's record and tracker, in the first process only."""
    if not process.first:
        return Run(folder.name, folder, Tracker(), NoRecord())
    run = open_run(settings, folder.name, "train", folder, config, tracker)
    replace(folder / CONFIG, json.dumps(config, indent=1).encode())
    return run


def _fit(
    science: "Science",
    config: Any,
    splits: Mapping[str, "Split"],
    run: Run,
    checkpoints: Checkpoints,
    process: Process,
    command: str,
) -> Any:
    """Run the training loop; finish the run however the loop ends."""
    try:
        if gc.get_threshold() > GC_THRESHOLDS:  # the imports of this command have ended
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        with stop_after_checkpoint(checkpoints):
            return science.train.fit(config, splits, run, checkpoints, process)
    except RunStoppedError:
        run.finish()
        raise
    except PreemptedError as stop:
        if run.tracker.stopped_by_sweep():
            run.finish()
            raise RunStoppedError("the sweep stopped this trial") from None
        run.finish(exit_code=RESUME)
        raise PreemptedError(f"{stop}. Resume with `{command} train --run {run.id}`") from None
    except BaseException as error:
        run.finish(exit_code=1)
        if process.is_peer_failure(error):
            raise StackError(
                "another process of this run died; start all of them again to resume from the last checkpoint "
                "(torchrun --max-restarts does this)"
            ) from None
        raise


@contextmanager
def stop_after_checkpoint(checkpoints: Checkpoints) -> Iterator[None]:
    """Make SIGTERM and Ctrl-C stop training after the current step and a checkpoint, instead of immediately."""

    def stop(*_: object) -> None:
        checkpoints.stopping = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in termination_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def saved_config(settings: "Settings", run_id: str) -> dict[str, Any]:
    """Return the configuration of a run from disk or from the store. Raises StackError if there is no such run."""
    path = settings.runs / run_id / CONFIG
    if path.exists():
        config = read_json(path)
        config.pop("data", None)
        return config
    store = open_store(settings.storage, settings)
    kept = f"checkpoints/{run_id}"
    steps = store.ls(kept, detail=False) if store.isdir(kept) else []  # no glob: the id may contain wildcards
    for step in sorted(steps, reverse=True):
        with suppress(ValueError, FileNotFoundError):  # damaged: the previous one has the same configuration
            found: dict[str, Any] = json.loads(store.cat_file(f"{step}/{STATE}"))["config"]
            found.pop("data", None)
            return found
    raise StackError(f"no run {run_id} on disk or in {settings.storage}; omit --run to start a new one")


def find_run(settings: "Settings", run_id: str = "") -> Path:
    """Return the folder of a finished run, the latest by default. Raises StackError without one."""
    latest = settings.runs / LATEST
    if not run_id and not latest.exists():
        raise StackError(f"no trained model; run `{settings.command} train`")
    folder = settings.runs / (run_id or latest.read_text(encoding="utf-8"))
    if not (folder / RESULT).exists():
        raise StackError(f"{folder.name} is not a finished run; see {settings.runs}")
    return folder


def _new_run(runs: Path, settings: "Settings") -> str:
    """Return the id of a new run; after a restart by torchrun, the id of the run before it."""
    runs.mkdir(parents=True, exist_ok=True)
    note = runs / f".launched-{os.getppid()}"
    if settings.restarts and note.exists():
        return note.read_text(encoding="utf-8")
    run_id = new_id()
    if settings.world_size > 1:
        replace(note, run_id.encode())
    return run_id


def config_from_args(science: "Science", settings: "Settings", args: argparse.Namespace) -> Any:
    """Return the configuration from the arguments of `train`: the resumed run's, a file's, then flags."""
    layers = [saved_config(settings, args.run)] if args.run else []
    given = read_json(args.config) if args.config else {}
    if settings.wandb_run:  # W&B's agent also passes the fields that this library added
        given = {name: value for name, value in given.items() if name not in FACTS and name[:1] != "_"}
    layers += [given]
    names = {field.name for field in dataclasses.fields(science.config)}
    flags = {name: value for name, value in vars(args).items() if name in names}
    return read(science.config, *layers, flags)
