"""The arguments of `train`, for the command line and for the trials of a sweep."""

import argparse
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import add_flags

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LATEST = "latest"  # the file with the name of the latest run, beside the runs


def add_train_arguments(parser: argparse.ArgumentParser, science: "Science") -> None:
    """Add the arguments of `train` to a parser."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON file of settings; flags override it")
    add("--run", metavar="ID", help="resume this run; default: start a new one")
    add("--name", metavar="ID", help="name of the run; it is resumed if it exists")
    add_flags(parser, science.config)


def parse_train(science: "Science", words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `train`."""
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    add_train_arguments(parser, science)
    return parser.parse_args(words)


def chosen_run(args: argparse.Namespace, default: str) -> str:
    """Return the run that the arguments of `train` name, or `default`. Raises StackError for an invalid name."""
    given = args.name if args.run is None else args.run
    name = default if given is None else given
    if name or given is not None:
        check_run_name(name)
    return str(name)


def check_run_name(name: str) -> None:
    """Raise StackError for a name that no run can have."""
    if not NAME.fullmatch(name) or name == LATEST:
        raise StackError(f"run {name!r}: expected A-Z, a-z, 0-9, -, _ and . only, and not {LATEST!r}")


def new_id() -> str:
    """Return a run id: the current time and four random characters."""
    return time.strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()
