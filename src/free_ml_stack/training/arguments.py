"""The arguments of a training run, for the command line and for the trials of a sweep."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.project.flags import add_flags, read, read_json
from free_ml_stack.project.settings import Settings

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science


def add_train_arguments(parser: argparse.ArgumentParser, science: "Science") -> None:
    """Give a parser the arguments of `train`."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON file of settings; flags win over it")
    add("--run", default="", metavar="ID", help="go on with this run; default: start a new one")
    add("--name", default="", metavar="ID", help="start this run, or go on with it if it was started before")
    add_flags(parser, science.config)


def parse_train(science: "Science", words: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments of `train`."""
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    add_train_arguments(parser, science)
    return parser.parse_args(words)


def configured(science: "Science", settings: Settings, args: argparse.Namespace) -> Any:
    """The configuration that the arguments of `train` ask for."""
    from free_ml_stack.tracking.run import FACTS
    from free_ml_stack.training.run import saved_config

    layers = [saved_config(settings, args.run)] if args.run else []
    given = read_json(args.config) if args.config else {}
    if settings.wandb_run:  # an agent that goes on with a trial hands back all that W&B knows of it
        given = {name: value for name, value in given.items() if name not in FACTS and name[:1] != "_"}
    layers += [given]
    names = {field.name for field in dataclasses.fields(science.config)}
    flags = {name: value for name, value in vars(args).items() if name in names}
    return read(science.config, *layers, flags)
