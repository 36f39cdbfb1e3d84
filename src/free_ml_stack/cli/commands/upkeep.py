"""Commands for maintenance: doctor, info, sync, storage, remote."""

import argparse
import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from free_ml_stack.console import say, table

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings


def doctor(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Check keys, package versions, device, disk space and costs."""
    from free_ml_stack.cli import doctor as readiness

    return readiness.doctor(settings, args.json)


def add_doctor_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def info(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Show the settings, the runs with their metrics, the latest model and the deployed version."""
    from free_ml_stack.cli import info as state
    from free_ml_stack.evaluation.result import metric_text

    found = state.info(settings)
    if args.json:
        say(json.dumps(found, indent=1))
        return 0
    name, deployed = found["headline"], found["deployed"]
    rows = [
        (run["run"], metric_text(run["validation"][name])) for run in found["runs"] if name in (run["validation"] or {})
    ]
    say(table(rows, ("run", f"validation {name}")) if rows else "No finished runs.")
    say(f"Latest published model: {found['latest_model'] or 'none'}.")
    say(f"Deployed: {settings.algorithm} {deployed['version']}." if deployed else "Deployed: none.")
    return 0


def add_info_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `info`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, including each run's configuration"
    )


def sync(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Upload runs tracked offline to Weights & Biases; with Trackio, publish its dashboard as a static Space."""
    if settings.tracker == "trackio":
        from free_ml_stack.tracking.trackio_tracker import publish

        say(f"Public dashboard: {publish(settings)}")
        return 0
    from free_ml_stack.tracking import sync as syncing

    count = 0
    for name, seen in syncing.sync(settings):
        count += 1
        say(f"{name}: {seen}")
    say(f"{count} runs." if count else "Nothing to upload: W&B has all runs.")
    return 0


def storage(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Copy new and changed files between the project's store and another one."""
    from free_ml_stack.storage.stores import open_store
    from free_ml_stack.storage.transfer import transfer

    here, there = open_store(settings.storage, settings), open_store(args.url, settings)
    source, target = (here, there) if args.direction == "push" else (there, here)
    moved = transfer(source, target)
    say(f"{moved.copied} files copied, {moved.same} unchanged.")
    return 0


def add_storage_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `storage`."""
    add = parser.add_argument
    add("direction", choices=("push", "pull"), help="push: from the project's store to URL; pull: from URL")
    add("url", help="URL of the other store")


def remote(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Train on a free GPU of Colab or Kaggle from this terminal, and download the run."""
    from free_ml_stack.notebook import packages, sessions

    packages.require_portable(settings.root)
    return sessions.remote(settings, science.package, args.place, args.train, args.gpu, args.user)


def add_remote_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `remote`."""
    add, rest = parser.add_argument, argparse.REMAINDER
    add("place", choices=("colab", "kaggle"), help="service, used through its own client")
    add("--gpu", default="T4", help="Colab's name of the GPU, or empty for none (default: T4)")
    add("--user", default="", help="your Kaggle user name")
    add("--train", nargs=rest, default=[], metavar="ARGUMENT", help="arguments of `train` (must come last)")
