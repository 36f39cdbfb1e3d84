"""The arguments of `train`, for the command line and for the trials of a sweep."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.project.flags import add_flags

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science


def add_train_arguments(parser: argparse.ArgumentParser, science: "Science") -> None:
    """Add the arguments of `train` to a parser."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON file of settings; flags override it")
    add("--run", default="", metavar="ID", help="resume this run; default: start a new one")
    add("--name", default="", metavar="ID", help="name of the run; it is resumed if it exists")
    add_flags(parser, science.config)


def parse_train(science: "Science", words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `train`."""
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    add_train_arguments(parser, science)
    return parser.parse_args(words)
