"""The commands that bring a model to its users: publish, deploy, serve, predict, monitor."""

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.cli.command import say_next, whole
from free_ml_stack.cli.info import published_models
from free_ml_stack.console import display_path, say, table
from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import read_json
from free_ml_stack.project.settings import Settings

if TYPE_CHECKING:
    from free_ml_stack.deployment.monitor import Monitoring
    from free_ml_stack.deployment.versions import Build
    from free_ml_stack.project.science import Science


def publish(science: "Science", settings: Settings, args: Namespace) -> int:
    """Make the model folder with its card; send it to the store, and to the Hub where there is a token."""
    from free_ml_stack.credentials import check as credentials
    from free_ml_stack.hub import publish as hub
    from free_ml_stack.tracking import lineage
    from free_ml_stack.training.export import export
    from free_ml_stack.training.run import find_run

    repository, run = hub.repository_of(settings), find_run(settings, args.run)
    not_yet = f"Not on the Hub yet: {hub.why_not_published(settings)}."
    account = repository.id.partition("/")[0] if repository else ""
    trouble = credentials.key_problem("huggingface", account, settings.root / ".env") if repository else ""
    kept, silence = hub.user_sections(repository) if not trouble else ({}, "")
    folder = export(science, settings, run, kept)
    if args.dry_run:
        if trouble:
            raise StackError(trouble)
        say(*(hub.preview(repository, folder) if repository else [not_yet]), "Nothing was sent.")
        return 0
    published = hub.publish(settings, folder, args.public, trouble or silence)
    tracked = lineage.published(settings, folder, {"run": run.name, "url": published.url})
    say(
        f"Model and card are in {display_path(published.folder)}, and in {published.stored}.",
        *filter(None, [tracked]),
    )
    say(f"Published at {published.url} as {published.version}." if published.url else not_yet)
    return say_next(settings, "deploy")


def add_publish_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `publish`."""
    add = parser.add_argument
    add("--run", default="", metavar="ID", help="the run to publish (default: the latest)")
    add("--public", action="store_true", help="make the repository on the Hub public")
    add("--dry-run", action="store_true", help="show what would be sent to the Hub, and send nothing")


def deploy(science: "Science", settings: Settings, args: Namespace) -> int:
    """Make the published model the algorithm's next version; list the versions; roll back."""
    from free_ml_stack.deployment import deploy as deployment
    from free_ml_stack.storage.stores import open_store
    from free_ml_stack.tracking import lineage

    store, name = open_store(settings.storage, settings), settings.algorithm.partition("/")[2]
    if args.list:
        builds = deployment.versions(store, name)
        live = next((build.version for build in builds if not build.withdrawn), "")
        rows = [(build.version, _state(build, live), build.finished_at[:19], build.folder) for build in builds]
        say(table(rows, ("version", "state", "deployed", "folder")) if rows else "Nothing is deployed yet.")
        return 0
    if args.rollback is not None:
        build = deployment.rollback(store, name, args.rollback)
        say(f"{settings.algorithm} is back at version {build.version}.")
        return say_next(settings, "predict")
    if args.target != "gateway":
        return _deploy_elsewhere(science, settings, args)
    model = published_model(settings, args.model)
    build = deployment.deploy(model, store, name, science.predict, args.bump)
    tracked = lineage.deployed(settings, model, build.version)
    say(
        f"{settings.algorithm} is at version {build.version}, the model {model.name}: copied, checked, "
        "and it answers its sample as recorded.",
        *filter(None, [tracked]),
    )
    return say_next(settings, "serve", "predict")


def add_deploy_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `deploy`."""
    add = parser.add_argument
    bumps = ("major", "minor", "revision")
    targets = "the project's own gateway (default), an installation of Algorithmia, or a Hugging Face Space"
    spaces = ("auto", "zerogpu", "docker", "static")
    best = "kind of Space (default: the best that the account can have)"
    back = "go back to the version before, or to VERSION"
    add("--model", default="", metavar="ID", help="the published model (default: the one that was published last)")
    add("--bump", choices=bumps, default="minor", help="part of the version that rises")
    add("--list", action="store_true", help="list the versions")
    add("--target", choices=("gateway", "algorithmia", "space"), default="gateway", help=targets)
    add("--space", choices=spaces, default="auto", help=best)
    add("--rollback", nargs="?", const="", metavar="VERSION", help=back)


def _state(build: "Build", live: str) -> str:
    return "live" if build.version == live else "rolled back" if build.withdrawn else ""


def _deploy_elsewhere(science: "Science", settings: Settings, args: Namespace) -> int:
    from free_ml_stack.deployment.targets import RECORD, to_installation, to_space

    model = published_model(settings, args.model)
    if args.target == "algorithmia":
        version = to_installation(science, settings, model, args.bump)
        say(f"{settings.algorithm} is published as version {version} at {settings.algorithmia_api}.")
        return say_next(settings, "predict")
    hosted = to_space(science, settings, model, args.bump, args.space)
    say(f"The {hosted.rung} Space {hosted.page} answers at {hosted.url}")
    if hosted.calls:
        say(f"Its key is in {display_path(settings.private / RECORD)}. To call it from Python:", hosted.calls)
    return 0


def serve(science: "Science", settings: Settings, args: Namespace) -> int:
    """Run the gateway on this machine."""
    from free_ml_stack.algorithmia.calls import RECORD
    from free_ml_stack.gateway import serve as server
    from free_ml_stack.gateway.app import create_app
    from free_ml_stack.storage.local import local_store
    from free_ml_stack.storage.stores import open_store

    local = dataclasses.replace(settings, algorithmia_api="", credentials=settings.credentials - {"algorithmia"})
    project = open_store(local.storage, local)
    store = local_store(settings.private / "data")

    def app(keys: Sequence[str]) -> Any:
        return create_app(
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
        say(text, f"The key is in {display_path(record)}. Stop with Ctrl-C.")

    server.serve(app, keys=keys, host=args.host, port=args.port, workers=args.workers, record=record, say=announce)
    return 0


def add_serve_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `serve`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=int, default=0, help="port (default: a free one)")
    add("--workers", type=whole(1), default=1, help="processes (default: 1)")


def predict(science: "Science", settings: Settings, args: Namespace) -> int:
    """Call the deployed model through Algorithmia's own client."""
    from free_ml_stack.algorithmia.calls import call_algorithm, read_input, running_gateway, start_gateway
    from free_ml_stack.deployment.versions import deployed_build
    from free_ml_stack.storage.stores import open_store

    value = read_input(args.input) if args.input else read_json(published_model(settings, "") / "sample.json")["input"]
    if not (settings.algorithmia_api or running_gateway(settings)):
        name = settings.algorithm.partition("/")[2]
        deployed_build(open_store(settings.storage, settings), name, settings.command)
    with start_gateway(science, settings):
        [answer] = call_algorithm(settings, [value], args.version)
    say(json.dumps(answer, indent=1))
    return say_next(settings, "monitor")


def add_predict_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `predict`."""
    add = parser.add_argument
    add("input", nargs="?", default="", help="JSON, text, a file or - for standard input (default: the model's sample)")
    add("--version", default="", help="version to call (default: the latest)")


def monitor(science: "Science", settings: Settings, args: Namespace) -> int:
    """Compare the gateway's calls with the data that the model was trained on."""
    from free_ml_stack.deployment import monitor as monitoring

    say_monitoring(monitoring.monitor(settings))
    return 0


def say_monitoring(seen: "Monitoring") -> None:
    """Print what monitoring has found."""
    say(table([(name, f"{score:.3f}") for name, score in seen.drift["scores"].items()], ("quantity", "drift")))
    say(
        f"{seen.calls} calls of version {seen.version}, {seen.errors} failed; "
        f"median {seen.median_ms:.2f} ms, 99 % within {seen.p99_ms:.2f} ms."
    )
    say(
        f"Drift: {seen.drift['verdict']}.",
        *(f"Picture: {display_path(path)}" for path in seen.pictures.values()),
        seen.tracked,
    )


def published_model(settings: Settings, name: str) -> Path:
    """The folder of a published model, by default the one that was published last."""
    published = [path.name for path in published_models(settings)]
    if name and name not in published:
        raise StackError(f"no published model {name}: run `{settings.command} publish --run {name}`")
    if not published:
        from free_ml_stack.training.run import find_run

        find_run(settings)  # raises where nothing is trained, which comes first
        raise StackError(f"no published model yet: run `{settings.command} publish`")
    return settings.models / (name or published[-1])
