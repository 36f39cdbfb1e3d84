"""Commands for trained models: publish, deploy, serve, predict, monitor."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from free_ml_stack.cli.command import integer_from, print_next
from free_ml_stack.cli.info import published_models
from free_ml_stack.console import display_path, say, table
from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import read_json

if TYPE_CHECKING:
    from free_ml_stack.deployment.monitor import Monitoring
    from free_ml_stack.deployment.versions import Build
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings


def publish(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Create the model folder with its card; upload it to the store and, with a token, to the Hub."""
    from free_ml_stack.credentials import check as credentials
    from free_ml_stack.hub import publish as hub
    from free_ml_stack.tracking import lineage
    from free_ml_stack.training.export import export
    from free_ml_stack.training.run import find_run

    repository, run = hub.repository_of(settings), find_run(settings, args.run)
    not_published = f"Not published on the Hub: {hub.why_not_published(settings)}."
    account = repository.id.partition("/")[0] if repository else ""
    problem = credentials.key_problem("huggingface", account, settings.root / ".env") if repository else ""
    kept, warning = hub.user_sections(repository) if not problem else ({}, "")
    folder = export(science, settings, run, kept)
    if args.dry_run:
        if problem:
            raise StackError(problem)
        say(*(hub.preview(repository, folder) if repository else [not_published]), "Dry run: nothing was uploaded.")
        return 0
    stored, url, version = hub.publish(settings, folder, args.public, problem or warning)
    say(f"Model and card are in {display_path(folder)} and {stored}.")
    say(f"Published at {url} as {version}." if url else not_published)
    say(*filter(None, [lineage.published(settings, folder, {"run": run.name, "url": url})]))
    return print_next(settings, "deploy")


def add_publish_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `publish`."""
    add = parser.add_argument
    add("--run", default="", metavar="ID", help="run to publish (default: the latest)")
    add("--public", action="store_true", help="make the repository on the Hub public")
    add("--dry-run", action="store_true", help="show what would be uploaded to the Hub, without uploading")


def deploy(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Deploy the published model as the algorithm's next version; list versions; roll back."""
    from free_ml_stack.deployment import deploy as deployment
    from free_ml_stack.storage.stores import open_store
    from free_ml_stack.tracking import lineage

    store, name = open_store(settings.storage, settings), settings.algorithm.partition("/")[2]
    if args.list:
        builds = deployment.versions(store, name)
        live = next((build.version for build in builds if not build.withdrawn), "")
        rows = [(build.version, _state(build, live), build.finished_at[:19], build.folder) for build in builds]
        say(table(rows, ("version", "state", "deployed", "folder")) if rows else "No version is deployed.")
        return 0
    if args.rollback is not None:
        build = deployment.rollback(store, name, args.rollback)
        say(f"Rolled {settings.algorithm} back to version {build.version}.")
        return print_next(settings, "predict")
    if args.target != "gateway":
        return _deploy_elsewhere(science, settings, args)
    model = published_model(settings, args.model)
    build = deployment.deploy(model, store, name, science.predict, args.bump)
    say(
        f"Deployed model {model.name} as version {build.version} of {settings.algorithm}; "
        "its prediction for the sample equals the recorded one."
    )
    say(*filter(None, [lineage.deployed(settings, model, build.version)]))
    return print_next(settings, "serve", "predict")


def add_deploy_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `deploy`."""
    add = parser.add_argument
    bumps = ("major", "minor", "revision")
    targets = "the project's gateway (default), an Algorithmia installation, or a Hugging Face Space"
    spaces = ("auto", "zerogpu", "docker", "static")
    best = "kind of Space (default: the best one available to the account)"
    back = "roll back to the previous version, or to VERSION"
    add("--model", default="", metavar="ID", help="published model (default: the latest published one)")
    add("--bump", choices=bumps, default="minor", help="part of the version to increase (default: minor)")
    add("--list", action="store_true", help="list the versions")
    add("--target", choices=("gateway", "algorithmia", "space"), default="gateway", help=targets)
    add("--space", choices=spaces, default="auto", help=best)
    add("--rollback", nargs="?", const="", metavar="VERSION", help=back)


def _state(build: "Build", live: str) -> str:
    return "live" if build.version == live else "rolled back" if build.withdrawn else ""


def _deploy_elsewhere(science: "Science", settings: "Settings", args: Namespace) -> int:
    from free_ml_stack.deployment.targets import RECORD, to_installation, to_space

    model = published_model(settings, args.model)
    if args.target == "algorithmia":
        version = to_installation(science, settings, model, args.bump)
        say(f"Deployed version {version} of {settings.algorithm} to {settings.algorithmia_api}.")
        return print_next(settings, "predict")
    hosted = to_space(science, settings, model, args.bump, args.space)
    say(f"The {hosted.kind} Space {hosted.page} is running at {hosted.url}")
    if hosted.calls:
        say(f"Its key is in {display_path(settings.private / RECORD)}. To call it from Python:", hosted.calls)
    return 0


def serve(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Run the gateway on this machine."""
    from dataclasses import replace

    from free_ml_stack.algorithmia.calls import RECORD
    from free_ml_stack.gateway import serve as server
    from free_ml_stack.gateway.app import Gateway
    from free_ml_stack.storage.local import local_store
    from free_ml_stack.storage.stores import open_store

    local = replace(settings, algorithmia_api="", credentials=settings.credentials - {"algorithmia"})
    project = open_store(local.storage, local)
    store = local_store(settings.private / "data")

    def app(keys: Sequence[str]) -> Any:
        return Gateway(
            store=store,
            project=project,
            user=settings.user,
            keys=keys,
            algorithm=settings.algorithm,
            predictor=f"{science.package}.predict",
        )

    keys = [settings.algorithmia_api_key] if settings.algorithmia_api_key else []
    record = settings.private / RECORD

    def announce(text: str) -> None:
        if sys.stdout.isatty():  # a log must not hold the key
            running = json.loads(record.read_text(encoding="utf-8"))
            say(f"Page: {running['url']}/#key={quote(running['key'], safe='')}")
        say(text, f"The key is in {display_path(record)}. Stop with Ctrl-C.")

    server.serve(app, keys=keys, host=args.host, port=args.port, workers=args.workers, record=record, say=announce)
    return 0


def add_serve_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `serve`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=0, help="port (default: a free one)")
    add("--workers", type=integer_from(1), default=1, help="number of processes (default: 1)")


def predict(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Call the deployed model with Algorithmia's client."""
    from free_ml_stack.algorithmia.calls import call_algorithm, read_input, running_gateway, start_gateway
    from free_ml_stack.deployment.versions import deployed_build
    from free_ml_stack.storage.stores import open_store

    sample = args.input is None  # an empty text is an input
    value = read_json(published_model(settings, "") / "sample.json")["input"] if sample else read_input(args.input)
    if not (settings.algorithmia_api or running_gateway(settings)):
        name = settings.algorithm.partition("/")[2]
        deployed_build(open_store(settings.storage, settings), name, settings.command)
    with start_gateway(science, settings):
        [answer] = call_algorithm(settings, [value], args.version)
    say(json.dumps(answer, ensure_ascii=False, indent=1))
    return print_next(settings, "monitor")


def add_predict_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `predict`."""
    add = parser.add_argument
    add("input", nargs="?", help="JSON, text, a file, or - for stdin (default: the model's sample)")
    add("--version", default="", help="version to call (default: the latest)")


def monitor(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Compare the gateway's calls with the training data."""
    from free_ml_stack.deployment import monitor as monitoring

    print_monitoring(monitoring.monitor(settings))
    return 0


def print_monitoring(seen: "Monitoring") -> None:
    """Print the results of monitoring."""
    say(table([(name, f"{score:.3f}") for name, score in seen.drift["scores"].items()], ("quantity", "drift")))
    say(
        f"{seen.calls} calls of version {seen.version}, {seen.errors} failed; "
        f"latency: median {seen.median_ms:.2f} ms, p99 {seen.p99_ms:.2f} ms."
    )
    say(
        f"Drift: {seen.drift['verdict']}.",
        *(f"Picture: {display_path(path)}" for path in seen.pictures.values()),
        *filter(None, [seen.tracked]),
    )


def published_model(settings: "Settings", name: str) -> Path:
    """Return the folder of a published model, by default of the latest one. Raises StackError without one."""
    published = [path.name for path in published_models(settings)]
    if name and name not in published:
        raise StackError(f"no published model {name}; run `{settings.command} publish --run {name}`")
    if not published:
        from free_ml_stack.training.run import find_run

        find_run(settings)  # raises if there is no trained model either
        raise StackError(f"no published model; run `{settings.command} publish`")
    return settings.models / (name or published[-1])
