"""The command line: one command a step."""

import argparse
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.cli.commands import (
    Arguments,
    data,
    deploy,
    doctor,
    monitor,
    predict,
    publish,
    remote,
    serve,
    storage,
    sweep,
    sync,
    train,
)
from free_ml_stack.errors import StackError, from_outside, in_a_line
from free_ml_stack.project.arguments import add_train_arguments
from free_ml_stack.project.settings import Settings, load

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science


def demo(science: "Science", settings: Settings, args: Arguments) -> int:
    """All of it, one step after the other, with a report at the end."""
    from free_ml_stack.cli.demo import demo

    return demo(science, settings, lambda name, given: COMMANDS[name](science, given, parse(science, [name])))


COMMANDS: dict[str, Callable[["Science", Settings, Arguments], int]] = {
    command.__name__: command
    for command in (
        doctor,
        data,
        train,
        sweep,
        publish,
        deploy,
        serve,
        predict,
        monitor,
        sync,
        demo,
        storage,
        remote,
    )
}


def add_arguments(name: str, parser: argparse.ArgumentParser, science: "Science") -> None:
    """The arguments of one command."""
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting of stack.toml")
    if name == "doctor":
        add("--json", action="store_true", help="print one JSON document")
    elif name == "data":
        add("--seed", type=whole(0), default=0, help="seed of the split (default: 0)")
        add("--from", dest="source", default="", metavar="URL", help="read hf://datasets/USER/NAME instead")
        add("--publish", default="", metavar="URL", help="publish the data set at hf://datasets/USER/NAME")
        add("--public", action="store_true", help="make the repository on the Hub public")
    elif name == "train":
        add_train_arguments(parser, science)
    elif name == "sweep":
        add("--file", type=Path, help="the sweep (default: sweep.yaml)")
        add("--agents", type=whole(1), default=2, metavar="N", help="trials at the same time (default: 2)")
        add(
            "--trials",
            type=whole(0),
            default=0,
            metavar="N",
            help="trials at most (default: run_cap of the file)",
        )
        add("--join", default="", metavar="ID", help="run agents of the sweep ENTITY/PROJECT/ID at W&B")
        add(
            "--study",
            default="",
            metavar="PLACE",
            help="keep the trials there, for several machines: a folder that they share, or a database's URL",
        )
        add("--sampler", choices=("tpe", "gp"), default="tpe", help="of a bayes sweep here (default: tpe)")
        add("--timeout", type=seconds, default=0.0, metavar="S", help="seconds that a trial here may take")
    elif name == "publish":
        add("--run", default="", metavar="ID", help="the run to publish (default: the latest)")
        add("--public", action="store_true", help="make the repository on the Hub public")
        add("--dry-run", action="store_true", help="show what would be sent to the Hub, and send nothing")
    elif name == "deploy":
        add("--model", default="", metavar="ID", help="the published model (default: the latest)")
        add(
            "--bump",
            choices=("major", "minor", "revision"),
            default="minor",
            help="part of the version that rises",
        )
        add("--list", action="store_true", help="list the versions")
        add(
            "--target",
            choices=("gateway", "algorithmia", "space"),
            default="gateway",
            help="the project's own gateway (default), an installation of Algorithmia, or a Hugging Face Space",
        )
        add(
            "--space",
            choices=("auto", "zerogpu", "docker", "static"),
            default="auto",
            help="kind of Space (default: the best that the account can have)",
        )
        add(
            "--rollback",
            nargs="?",
            const="",
            metavar="VERSION",
            help="go back to the version before, or to VERSION",
        )
    elif name == "serve":
        add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
        add("--port", type=int, default=0, help="port (default: a free one)")
        add("--workers", type=whole(1), default=1, help="processes (default: 1)")
    elif name == "predict":
        add("input", nargs="?", default="", help="JSON, a file of it, or - (default: the model's sample)")
        add("--version", default="", help="version to call (default: the latest)")
    elif name == "storage":
        add("direction", choices=("push", "pull"), help="push: from the project's store to URL; pull: back")
        add("url", help="the other store")
    elif name == "remote":
        add("place", choices=("colab", "kaggle"), help="where: through Google's or Kaggle's own client")
        add("--gpu", default="T4", help="Colab's name of the GPU; empty for none (default: T4)")
        add("--user", default="", help="your account at Kaggle")
        add(
            "--train",
            nargs=argparse.REMAINDER,
            default=[],
            metavar="ARGUMENT",
            help="all that follows is for `train`",
        )


def whole(least: int) -> Callable[[str], int]:
    """What reads a whole number of at least `least` from the command line."""

    def read_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
        return int(text)

    return read_number


def seconds(text: str) -> float:
    """A time from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def parse(science: "Science", arguments: Sequence[str]) -> Arguments:
    """The parsed command line; only the command that it names gets its arguments, so that help is quick."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).stem.replace("__main__", f"python -m {science.package}")
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").strip()
        one = commands.add_parser(name, help=text, description=text)
        if name in arguments:
            add_arguments(name, one, science)
    return parser.parse_args(arguments)


def main(package: str) -> None:
    """Run the command that the arguments name for the project whose package that is, and exit with its code."""
    from free_ml_stack.project.science import Science

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a folder's name may not fit the code page of a pipe
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(run(Science(package)))


def run(science: "Science", arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A mistake of the user ends in one line and code 1."""
    args = parse(science, sys.argv[1:] if arguments is None else arguments)
    try:
        settings = load(overrides(args.set), Path.cwd())
        return COMMANDS[args.command](science, settings, args)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if not from_outside(error):
            raise
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        print("What was made so far is kept; run the same command again.", file=sys.stderr)
        return 1


def overrides(pairs: Sequence[str]) -> dict[str, str]:
    """The settings in NAME=VALUE words; StackError for a word without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise StackError(f"--set {pair}: expected NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
