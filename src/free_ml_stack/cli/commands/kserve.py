"""The engine `kserve` of `launch`."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from free_ml_stack.cli.command import integer_from
from free_ml_stack.cli.commands.delivery import published_model
from free_ml_stack.console import display_path, say
from free_ml_stack.project.settings import Settings

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science


def kserve(science: "Science", settings: Settings, args: Namespace) -> int:
    """Write an InferenceService for KServe, and the published model for Triton."""
    from free_ml_stack.launch import kserve as engine

    options = engine.ServiceOptions(args.uri, args.gpus, args.service_account)
    written = engine.write(settings, published_model(settings, args.model), options)
    say(
        f"Model repository for Triton: {written.repository}",
        f"Next: `kubectl apply -f {display_path(written.service)}`",
    )
    return 0


def add_kserve_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `launch kserve`."""
    add = parser.add_argument
    add("--model", default="", metavar="ID", help="published model (default: the latest published one)")
    add("--uri", default="", help="URL of the model repository, if KServe cannot read the store")
    add("--gpus", type=integer_from(0), default=0, help="GPUs (default: none)")
    add("--service-account", default="", metavar="NAME", help="service account with the keys of the store")
