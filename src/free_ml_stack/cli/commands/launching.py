"""The command that hands training and sweeps over to a cluster or a cloud: launch."""

import argparse
import contextlib
import io
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from free_ml_stack.cli.command import integer_from
from free_ml_stack.cli.commands.delivery import published_model
from free_ml_stack.cli.commands.training import add_sweep_arguments
from free_ml_stack.console import display_path, say
from free_ml_stack.errors import StackError
from free_ml_stack.project.arguments import add_train_arguments, new_id

if TYPE_CHECKING:
    from free_ml_stack.launch.job import Job
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

USAGE = "%(prog)s [OPTIONS] -- train|sweep …"


def launch(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Run train or sweep on a Slurm cluster, with SkyPilot, or as a Hugging Face Job; serve a model with KServe."""
    code: int = args.engine(science, settings, args)
    return code


def slurm(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Write a batch file; requeued jobs resume from the last checkpoint."""
    from free_ml_stack.launch import slurm

    job = read_job(science, settings, args.words)
    path = slurm.write(job, args.nodes, args.gpus, args.time, args.partition)
    say(f"Next: `sbatch {display_path(path)}`")
    return 0


def sky(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Write a task file for SkyPilot: a managed job, recovered on other machines from the last checkpoint."""
    from free_ml_stack.launch import sky

    job = read_job(science, settings, args.words)
    path = sky.write(job, args.nodes, args.gpus, args.spot)
    say(f"Next: `{sky.command(job, display_path(path))}`")
    return 0


def hf(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Run a Hugging Face Job; without --yes, only print its price."""
    from free_ml_stack.launch import jobs

    job = read_job(science, settings, args.words)
    page = jobs.launch(job, args.flavor, args.timeout, args.attempts, args.yes)
    say(f"Job: {page}" if page else "Nothing was sent; add --yes before `--` to start the job.")
    return 0


def kserve(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Write an InferenceService for KServe, and the published model for Triton."""
    from free_ml_stack.launch import kserve

    model = published_model(settings, args.model)
    path, repository = kserve.write(settings, model, args.uri, args.gpus, args.service_account)
    say(f"Model repository for Triton: {repository}", f"Next: `kubectl apply -f {display_path(path)}`")
    return 0


def read_job(science: "Science", settings: "Settings", words: Sequence[str]) -> "Job":
    """Return the job of the words after `--`. Raises StackError unless they are a valid `train` or `sweep`."""
    from free_ml_stack.launch import job

    words = list(words[1:] if words[:1] == ["--"] else words)
    commands = {"train": add_train_arguments, "sweep": add_sweep_arguments}
    if not words or words[0] not in commands:
        raise StackError("launch: expected `-- train …` or `-- sweep --study URL …` after the options")
    parser = ArgumentParser(prog=words[0], allow_abbrev=False)
    commands[words[0]](parser, science)
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            args = parser.parse_args(words[1:])
        except SystemExit as end:
            if not end.code:  # --help
                raise
            raise StackError(complaint.getvalue().strip().splitlines()[-1]) from None
    args.now = new_id()
    if words[0] == "train":
        return job.train_job(science, settings, args)
    return job.sweep_job(science, settings, args, words)


def add_launch_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `launch`."""
    engines = parser.add_subparsers(metavar="ENGINE", required=True)
    one = _engine(engines, "slurm", slurm)
    one.add_argument("--nodes", type=integer_from(1), default=1, help="number of nodes (default: 1)")
    one.add_argument("--gpus", type=integer_from(0), default=0, help="GPUs, and processes, a node (default: none)")
    one.add_argument("--time", default="", help="time limit, such as 4:00:00 (default: the partition's)")
    one.add_argument("--partition", default="", help="partition (default: the cluster's)")
    one = _engine(engines, "sky", sky)
    one.add_argument("--nodes", type=integer_from(1), default=1, help="number of machines (default: 1)")
    one.add_argument("--gpus", default="", metavar="NAME[:COUNT]", help="GPUs of a machine, such as L4 (default: none)")
    one.add_argument("--spot", action="store_true", help="use spot machines, which cost less and are preempted")
    one = _engine(engines, "hf", hf)
    one.add_argument(
        "--flavor", default="cpu-basic", help="machine; `hf jobs hardware` lists them (default: cpu-basic)"
    )
    one.add_argument("--timeout", default="4h", help="time limit of an attempt, such as 90m (default: 4h)")
    one.add_argument("--attempts", type=integer_from(1), default=1, help="starts of a job that fails (default: 1)")
    one.add_argument("--yes", action="store_true", help="start the job, which costs money")
    one = _engine(engines, "kserve", kserve, has_words=False)
    one.add_argument("--model", default="", metavar="ID", help="published model (default: the latest published one)")
    one.add_argument("--uri", default="", help="URL of the model repository, if KServe cannot read the store")
    one.add_argument("--gpus", type=integer_from(0), default=0, help="GPUs (default: none)")
    one.add_argument("--service-account", default="", metavar="NAME", help="service account with the keys of the store")


def _engine(
    engines: "argparse._SubParsersAction[ArgumentParser]", name: str, run: object, has_words: bool = True
) -> ArgumentParser:
    """Add an engine, whose options are followed by the words of the command to run unless it has none."""
    text = (run.__doc__ or "").strip()
    one = engines.add_parser(name, help=text, description=text, usage=USAGE if has_words else "%(prog)s [OPTIONS]")
    one.set_defaults(engine=run)
    if has_words:
        text = "the command: `-- train …`, or `-- sweep --study URL …`"
        one.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help=text)
    return one
