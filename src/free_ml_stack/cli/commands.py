"""The command line: one command a step, each says what it made and what comes next."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.console import say, shown, table
from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import read_json
from free_ml_stack.project.settings import Settings

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science

Arguments = argparse.Namespace


def doctor(science: "Science", settings: Settings, args: Arguments) -> int:
    """Check keys, versions, device and disk."""
    from free_ml_stack.cli.doctor import doctor

    return doctor(settings, args.json)


def data(science: "Science", settings: Settings, args: Arguments) -> int:
    """Fetch the data set, split it, and write it to the store."""
    from free_ml_stack.data import dataset
    from free_ml_stack.storage.stores import open_store

    source, store = science.data, open_store(settings.storage, settings)
    if args.source or args.publish:
        from free_ml_stack.data import hub_dataset as shards
    if args.publish:
        shards.repository_of(args.publish)
    if args.source:
        written = shards.fetch(args.source, store, source.LABELS)
    else:
        facts = {
            "name": source.NAME,
            "source": source.SOURCE,
            "license": {"license": source.LICENSE},
            "labels": source.LABELS,
            "split_seed": args.seed,
        }
        written = dataset.write(store, source.split(source.fetch(), args.seed), facts)
    say(table(list(written["rows"].items()), ("split", "rows")))
    say(f"Data set {written['name']} is in {settings.storage}/{dataset.FOLDER}.")
    if args.publish:
        url, version = shards.publish(args.publish, store, science.model.TASK, written["name"], args.public)
        say(f"Published at {url} as {version}.")
    return _next(settings, "train")


def train(science: "Science", settings: Settings, args: Arguments) -> int:
    """Train a model; every field of TrainConfig is a flag."""
    from free_ml_stack.tracking.tracker import Stopped
    from free_ml_stack.training.checkpoint import Interrupted
    from free_ml_stack.training.run import RESUME, configured, failed_early, train

    run = args.run or args.name or settings.wandb_run  # an agent of W&B has named its trial
    try:
        result = train(science, configured(science, settings, args), settings, run)
    except Interrupted as stop:
        if settings.rank == 0:
            say(str(stop))
        return RESUME
    except Stopped as stop:
        say(f"{stop}.")
        return 0
    except (StackError, OSError):
        if settings.wandb_run and settings.rank == 0:
            failed_early(settings, run)
        raise
    if settings.rank == 0:
        say(
            f"Test accuracy {result['test']['accuracy']:.4f}; {result['steps']} steps in {result['seconds']:.1f} s."
        )
        say(
            f"Run {result['run']} is in {shown(settings.runs / result['run'])}.",
            *filter(None, [result["tracked"]]),
        )
        if not settings.wandb_sweep:  # after a trial comes the next one
            _next(settings, "sweep", "publish")
    return 0


def sweep(science: "Science", settings: Settings, args: Arguments) -> int:
    """Search for a better configuration, as sweep.yaml says: by W&B where a key works, else here."""
    from free_ml_stack.sweeps.command import is_own
    from free_ml_stack.sweeps.sweep import Options, sweep

    options = Options(args.agents, args.trials, args.join, args.study, args.sampler, args.timeout)
    found = sweep(science, settings, args.file or settings.root / "sweep.yaml", options)
    say(
        table(found.rows(), found.header()),
        f"Pictures and trials are in {shown(found.folder)}.",
        found.tracked,
    )
    say(f"Best: {found.metric} {found.best_value:.4f}, written to {shown(found.best_config)}.")
    if not is_own(found.plan, science.package):  # what another program takes is nothing to `train` with
        return 0
    return _next(settings, f"train --config {shown(found.best_config)}", "publish")


def publish(science: "Science", settings: Settings, args: Arguments) -> int:
    """Make the model folder with its card; send it to the store, and to the Hub where there is a token."""
    from free_ml_stack.credentials import check as credentials
    from free_ml_stack.hub import publish as hub
    from free_ml_stack.tracking import lineage
    from free_ml_stack.training.export import export
    from free_ml_stack.training.run import find_run

    place, run = hub.place_of(settings), find_run(settings, args.run)
    not_yet = f"Not on the Hub yet: {hub.lacking(settings)}."
    account = place.id.partition("/")[0] if place else ""
    trouble = credentials.trouble("huggingface", account, settings.root / ".env") if place else ""
    kept, silence = hub.edited(place) if not trouble else ({}, "")
    folder = export(science, settings, run, kept)
    if args.dry_run:
        if trouble:
            raise StackError(trouble)
        say(*(hub.preview(place, folder) if place else [not_yet]), "Nothing was sent.")
        return 0
    published = hub.publish(settings, folder, args.public, trouble or silence)
    tracked = lineage.published(settings, folder, {"run": run.name, "url": published.url})
    say(
        f"Model and card are in {shown(published.folder)}, and in {published.stored}.",
        *filter(None, [tracked]),
    )
    say(f"Published at {published.url} as {published.version}." if published.url else not_yet)
    return _next(settings, "deploy")


def deploy(science: "Science", settings: Settings, args: Arguments) -> int:
    """Make the published model the algorithm's next version; list the versions; roll back."""
    from free_ml_stack.deployment import deploy
    from free_ml_stack.storage.stores import open_store
    from free_ml_stack.tracking import lineage

    store, name = open_store(settings.storage, settings), settings.algorithm.partition("/")[2]
    if args.list:
        rows = [
            (build.version, build.finished_at[:19], build.folder) for build in deploy.versions(store, name)
        ]
        say(table(rows, ("version", "deployed", "folder")) if rows else "Nothing is deployed yet.")
        return 0
    if args.rollback is not None:
        build = deploy.rollback(store, name, args.rollback)
        say(f"{settings.algorithm} is back at version {build.version}.")
        return _next(settings, "predict")
    if args.target != "gateway":
        return _deploy_elsewhere(science, settings, args)
    model = _model(settings, args.model)
    build = deploy.deploy(model, store, name, science.predict, args.bump)
    tracked = lineage.deployed(settings, model, build.version)
    say(
        f"{settings.algorithm} is at version {build.version}: copied, checked, and it answers its sample as recorded.",
        *filter(None, [tracked]),
    )
    return _next(settings, "serve", "predict")


def _deploy_elsewhere(science: "Science", settings: Settings, args: Arguments) -> int:
    from free_ml_stack.deployment.targets import RECORD, to_installation, to_space

    model = _model(settings, args.model)
    if args.target == "algorithmia":
        version = to_installation(science, settings, model, args.bump)
        say(f"{settings.algorithm} is published as version {version} at {settings.algorithmia_api}.")
        return _next(settings, "predict")
    hosted = to_space(science, settings, model, args.bump, args.space)
    say(f"The {hosted.rung} Space {hosted.page} answers at {hosted.url}")
    if hosted.calls:
        say(f"Its key is in {shown(settings.private / RECORD)}. To call it from Python:", hosted.calls)
    return 0


def serve(science: "Science", settings: Settings, args: Arguments) -> int:
    """Run the gateway on this machine."""
    from free_ml_stack.algorithmia.calls import RECORD
    from free_ml_stack.gateway.app import create_app
    from free_ml_stack.gateway.serve import serve
    from free_ml_stack.storage.local import local_store
    from free_ml_stack.storage.stores import open_store

    local = dataclasses.replace(
        settings, algorithmia_api="", credentials=settings.credentials - {"algorithmia"}
    )
    project = open_store(local.storage, local)
    store = local_store(settings.private / "data")

    def app(keys: Sequence[str]) -> Any:
        return create_app(
            store=store,
            project=project,
            user=settings.user,
            keys=keys,
            algorithm=settings.algorithm,
            predictor=science.predict,
        )

    keys = [settings.algorithmia_api_key] if settings.algorithmia_api_key else []
    record = settings.private / RECORD

    def told(text: str) -> None:
        say(text, f"The key is in {shown(record)}. Stop with Ctrl-C.")

    serve(app, keys=keys, host=args.host, port=args.port, workers=args.workers, record=record, say=told)
    return 0


def predict(science: "Science", settings: Settings, args: Arguments) -> int:
    """Call the deployed model through Algorithmia's own client."""
    from free_ml_stack.algorithmia.calls import call, read_input

    value = read_input(args.input) if args.input else read_json(_model(settings, "") / "sample.json")["input"]
    say(json.dumps(call(settings, [value], args.version)[0], indent=1))
    return _next(settings, "monitor")


def monitor(science: "Science", settings: Settings, args: Arguments) -> int:
    """Compare the gateway's calls with the data that the model was trained on."""
    from free_ml_stack.deployment.monitor import monitor

    seen = monitor(settings)
    say(
        table([(name, f"{score:.3f}") for name, score in seen.drift["scores"].items()], ("quantity", "drift"))
    )
    say(
        f"{seen.calls} calls of version {seen.version}, {seen.errors} failed; "
        f"median {seen.median_ms:.2f} ms, 99 % within {seen.p99_ms:.2f} ms."
    )
    say(
        f"Drift: {seen.drift['verdict']}.",
        *(f"Picture: {shown(path)}" for path in seen.pictures.values()),
        seen.tracked,
    )
    return 0


def sync(science: "Science", settings: Settings, args: Arguments) -> int:
    """Send what was tracked offline to Weights & Biases."""
    from free_ml_stack.tracking.sync import sync

    count = 0
    for name, seen in sync(settings):
        count += 1
        say(f"{name}: {seen}")
    say(f"{count} runs." if count else "Nothing to send: W&B has all of it.")
    return 0


def storage(science: "Science", settings: Settings, args: Arguments) -> int:
    """Move the project's data between its store and another one, only what differs."""
    from free_ml_stack.storage.stores import open_store, transfer

    here, there = open_store(settings.storage, settings), open_store(args.url, settings)
    source, target = (here, there) if args.direction == "push" else (there, here)
    moved = transfer(source, target)
    say(f"{moved.copied} files copied, {moved.same} were there already.")
    return 0


def remote(science: "Science", settings: Settings, args: Arguments) -> int:
    """Train on a free GPU of Colab or Kaggle, from this terminal, and fetch the run."""
    from free_ml_stack.notebook.sessions import remote

    return remote(settings, science.package, args.place, args.train, args.gpu, args.user)


def _model(settings: Settings, name: str) -> Path:
    """The folder of a published model, by default that of the latest run."""
    from free_ml_stack.training.run import find_run

    folder = settings.models / (name or find_run(settings).name)
    if not (folder / "manifest.json").exists():
        raise StackError(f"no published model {folder.name}: run `{settings.command} publish`")
    return folder


def _next(settings: Settings, *commands: str) -> int:
    say("Next: " + " or ".join(f"`{settings.command} {command}`" for command in commands))
    return 0
