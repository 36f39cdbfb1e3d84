"""The definition of a command, and argument types shared by commands."""

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from free_ml_stack.console import say

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings


def no_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add no arguments to a parser."""


class Command(NamedTuple):
    """A command: its name, the function that runs it and returns the exit code, and its arguments.

    The function's docstring is the command's help.
    """

    name: str
    run: Callable[["Science", "Settings", Namespace], int]
    add_arguments: Callable[[ArgumentParser, "Science"], None] = no_arguments


def integer_from(least: int) -> Callable[[str], int]:
    """Return an argument type for integers of at least `least`."""

    def read_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return int(text)

    return read_number


def parse_seconds(text: str) -> float:
    """Parse a time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"expected a number of seconds, 0 or more, got {text!r}")
    return value


def print_next(settings: "Settings", *commands: str) -> int:
    """Print the commands to run next; return exit code 0."""
    say("Next: " + " or ".join(f"`{settings.command} {command}`" for command in commands))
    return 0
