"""What a command is, and what commands have in common."""

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from free_ml_stack.console import say
from free_ml_stack.project.settings import Settings

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science


def no_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add no argument to a parser."""


@dataclass(frozen=True)
class Command:
    """A command: its name, the function that runs it and returns the exit code, and its arguments.

    The function's docstring is the command's help.
    """

    name: str
    run: Callable[["Science", Settings, Namespace], int]
    add_arguments: Callable[[ArgumentParser, "Science"], None] = no_arguments


def whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least `least`."""

    def read_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
        return int(text)

    return read_number


def seconds(text: str) -> float:
    """Read a time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def say_next(settings: Settings, *commands: str) -> int:
    """Print which commands come next; returns the exit code of success."""
    say("Next: " + " or ".join(f"`{settings.command} {command}`" for command in commands))
    return 0
