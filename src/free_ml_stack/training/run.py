"""One training run from data to weights: opens what the loop needs, and keeps what comes of it."""

import argparse
import dataclasses
import json
import os
import re
import secrets
import signal
import threading
import time
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
from free_ml_stack.processes import termination_signals
from free_ml_stack.project.flags import read, read_json
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking import lineage, provenance
from free_ml_stack.tracking.opening import open_run
from free_ml_stack.tracking.run import FACTS, NoRecord, Run
from free_ml_stack.tracking.tracker import PREEMPTED, RunStoppedError, Tracker
from free_ml_stack.training import outcome
from free_ml_stack.training.checkpoint import Checkpoints, same
from free_ml_stack.training.outcome import MODEL, RESULT
from free_ml_stack.training.process import Process, join
from free_ml_stack.training.snapshot import STATE

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

CONFIG, LATEST = "config.json", "latest"
DATA = "data.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESUME = PREEMPTED  # EX_TEMPFAIL of sysexits.h: start me again


def train(
    science: "Science",
    config: Any,
    settings: "Settings",
    run_id: str = "",
    folder: Path | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Train with `config` and return the run's result, as written to `<folder>/<run>/result.json`.

    `run_id` names a run to go on with; without it a new one starts. `folder` is where runs are kept,
    `tracker` follows the run instead of the configured one. Raises PreemptedError after SIGTERM or Ctrl-C, and
    RunStoppedError where the tracker ends the run.
    """
    runs = folder or settings.runs
    store, fresh = open_store(settings.storage, settings), not (run_id or settings.restarts)
    with join(settings, config.device, config.threads) as process:
        batch = getattr(config, "batch_size", process.size)
        if batch % process.size:
            raise StackError(f"batch_size: must be a multiple of the {process.size} processes, is {batch}")
        run_id = process.agree(run_id or (_new_run(runs, settings) if process.first else ""))
        splits, facts = process.first_then_all(
            lambda: dataset.read(store, settings.private / "cache", settings.command)
        )
        places = process.agree(pretrained.all_pinned(asdict(config), settings) if process.first else {})
        config = replace_fields(config, **places)
        values = asdict(config)
        started = {**values, "data": dataset.fingerprint(facts)}
        if process.first:
            _refuse_other(runs, run_id, started)
        if process.first and folder is None:
            say(f"Run {run_id}: {process}.")
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
            result, judged = outcome.keep(science, config, model, splits, run, result)
            if folder is None and not settings.wandb_sweep:  # a trial is not what is published next
                # before W&B is waited for: who stops that wait has a trained model all the same
                replace(runs / LATEST, run_id.encode())
            if folder is None:  # nobody looks at the pictures of a trial
                outcome.show(run, judged)
            if run.tracked:
                saved = sorted(path for path in (run.folder / MODEL).rglob("*") if path.is_file())
                lineage.trained(run, [*saved, run.folder / CONFIG, run.folder / RESULT])
            result["tracked"] = run.finish()
    return result


def _size(model: Any) -> dict[str, int]:
    """How many parameters a model has, for one of torch's."""
    found = getattr(model, "parameters", None)
    return {"parameters": sum(parameter.numel() for parameter in found())} if found else {}


def failed_early(settings: "Settings", run_id: str) -> None:
    """Tell the tracker of a trial that failed before it was opened: its sweep would wait for it."""
    if not (settings.runs / run_id / CONFIG).exists():
        open_run(settings, run_id, "train", settings.runs / run_id, {}).finish(exit_code=1)


def _refuse_other(runs: Path, run_id: str, config: Mapping[str, Any]) -> None:
    """Raise StackError for an id that is no name of a folder, or of a run that was started with another configuration.

    Before anything of it is opened: a run that is refused stays as it was.
    """
    if not NAME.fullmatch(run_id) or run_id == LATEST:
        raise StackError(f"run {run_id!r}: a name is letters, digits, -, _ and . only, and not {LATEST!r}")
    if (path := runs / run_id / CONFIG).exists():
        same(read_json(path), config)


def _open(
    settings: "Settings", folder: Path, config: Mapping[str, Any], process: Process, tracker: Tracker | None
) -> Run:
    """The run's record and tracker; of the processes that train together only the first has them."""
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
    """Run the loop; whatever ends it, the run is ended too."""
    try:
        with stoppable(checkpoints):
            return science.train.fit(config, splits, run, checkpoints, process)
    except RunStoppedError:
        run.finish()
        raise
    except PreemptedError as stop:
        if run.tracker.over():
            run.finish()
            raise RunStoppedError("the sweep has stopped this trial") from None
        run.finish(exit_code=RESUME)
        raise PreemptedError(f"{stop}. Go on with: `{command} train --run {run.id}`") from None
    except BaseException as error:
        run.finish(exit_code=1)
        if process.lost(error):
            raise StackError(
                "another process of this run is gone; start them again to go on from the last checkpoint "
                "(torchrun does with --max-restarts)"
            ) from None
        raise


@contextmanager
def stoppable(checkpoints: Checkpoints) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end training after a step and a checkpoint, instead of at once."""

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
    """The configuration that a run was started with, here or on another machine; StackError without such a run."""
    path = settings.runs / run_id / CONFIG
    if path.exists():
        config = read_json(path)
        config.pop("data", None)
        return config
    store = open_store(settings.storage, settings)
    kept = f"checkpoints/{run_id}"
    steps = store.ls(kept, detail=False) if store.isdir(kept) else []  # no pattern: the id is as the user wrote it
    for step in sorted(steps, reverse=True):
        with suppress(ValueError, FileNotFoundError):  # torn: the one before it says the same
            found: dict[str, Any] = json.loads(store.cat_file(f"{step}/{STATE}"))["config"]
            found.pop("data", None)
            return found
    raise StackError(f"no run {run_id} here or in {settings.storage}; leave --run out to start a new one")


def find_run(settings: "Settings", run_id: str = "") -> Path:
    """The folder of a finished run, the latest by default; StackError if there is none."""
    latest = settings.runs / LATEST
    if not run_id and not latest.exists():
        raise StackError(f"no trained model yet: run `{settings.command} train`")
    folder = settings.runs / (run_id or latest.read_text(encoding="utf-8"))
    if not (folder / RESULT).exists():
        raise StackError(f"{folder.name} is no finished run; see {settings.runs}")
    return folder


def _new_run(runs: Path, settings: "Settings") -> str:
    """The id of a new run; of the one that the processes were at before their launcher started them again."""
    runs.mkdir(parents=True, exist_ok=True)
    note = runs / f".launched-{os.getppid()}"
    if settings.restarts and note.exists():
        return note.read_text(encoding="utf-8")
    run_id = new_id()
    if settings.world_size > 1:
        replace(note, run_id.encode())
    return run_id


def new_id() -> str:
    """An id for a run: when it started, and four characters of chance."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def configured(science: "Science", settings: "Settings", args: argparse.Namespace) -> Any:
    """The configuration that the arguments of `train` ask for."""
    layers = [saved_config(settings, args.run)] if args.run else []
    given = read_json(args.config) if args.config else {}
    if settings.wandb_run:  # an agent that goes on with a trial hands back all that W&B knows of it
        given = {name: value for name, value in given.items() if name not in FACTS and name[:1] != "_"}
    layers += [given]
    names = {field.name for field in dataclasses.fields(science.config)}
    flags = {name: value for name, value in vars(args).items() if name in names}
    return read(science.config, *layers, flags)
