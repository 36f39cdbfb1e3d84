"""The command line: one command a step."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.cli.command import Command
from free_ml_stack.cli.commands import COMMANDS
from free_ml_stack.console import open_streams
from free_ml_stack.credentials.environment import explain_error
from free_ml_stack.errors import StackError, is_external, one_line
from free_ml_stack.project.settings import Settings, load
from free_ml_stack.version import __version__

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science

SET = "override a setting of stack.toml"


def main(package: str) -> None:
    """Run the command that the arguments name for the project whose package that is, and exit with its code."""
    from free_ml_stack.project.science import Science

    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a folder's name may not fit the code page of a pipe
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(run(Science(package)))


def run(science: "Science", arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A mistake of the user ends in one line and code 1."""
    args = parse(science, sys.argv[1:] if arguments is None else arguments)
    try:
        settings = load(overrides(args.set), Path.cwd())
        return all_commands()[args.command].run(science, settings, args)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if told := explain_error(error):
            print(f"error: {told}", file=sys.stderr)
            return 1
        if not is_external(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        print("What was made so far is kept; run the same command again.", file=sys.stderr)
        return 1


def parse(science: "Science", arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; only the command that it names gets its arguments, so that help is quick."""
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).stem.replace("__main__", f"python -m {science.package}"))
    parser.add_argument("--version", action="version", version=f"free-ml-stack {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in all_commands().items():
        text = (command.run.__doc__ or "").strip()
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=SET)
        if name in arguments:
            command.add_arguments(one, science)
    return parser.parse_args(arguments)


def overrides(pairs: Sequence[str]) -> dict[str, str]:
    """The settings in NAME=VALUE words; StackError for a word without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise StackError(f"--set {pair}: expected NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def demo(science: "Science", settings: Settings, args: argparse.Namespace) -> int:
    """All of it, one step after the other, with a report at the end."""
    from free_ml_stack.cli import demo

    commands = all_commands()
    return demo.demo(science, settings, lambda name, given: commands[name].run(science, given, parse(science, [name])))


def all_commands() -> dict[str, Command]:
    """The commands by name; `demo`, which runs others, is one of them."""
    return {command.name: command for command in (*COMMANDS, Command("demo", demo))}
