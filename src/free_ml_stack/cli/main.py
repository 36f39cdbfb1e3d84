"""The command line of a project."""

import argparse
import gc
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.cli.command import Command
from free_ml_stack.cli.commands import COMMANDS
from free_ml_stack.console import open_streams
from free_ml_stack.errors import StackError, is_external
from free_ml_stack.version import __version__

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

SET = "override a setting of stack.toml"


def main(package: str) -> None:
    """Run the command line of the project with this package, and exit with the command's exit code."""
    from free_ml_stack.project.science import Science

    gc.set_threshold(100_000, 50, 50)  # see GC_THRESHOLDS in processes.py
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the encoding of a pipe may not support all file names
            stream.reconfigure(errors="backslashreplace")
    code = run(Science(package))
    gc.freeze()  # the interpreter would visit all of them again before it ends
    raise SystemExit(code)


def run(science: "Science", arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors that the user can correct give one line and code 1."""
    try:
        args = parse(science, sys.argv[1:] if arguments is None else arguments)
        from free_ml_stack.project.settings import load  # not needed for --help

        settings = load(overrides(args.set), Path.cwd())
        return all_commands()[args.COMMAND].run(science, settings, args)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    except Exception as error:
        from free_ml_stack.credentials.environment import explain_error

        if message := explain_error(error):
            print(f"error: {message}", file=sys.stderr)
            return 1
        if not is_external(error):
            raise
        from free_ml_stack.hub.client import error_line

        print(f"error: {error_line(error)}", file=sys.stderr)
        print("Partial results were kept; rerun the command to continue.", file=sys.stderr)
        return 1


def parse(science: "Science", arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; only the chosen command's arguments are added, to keep --help fast."""
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).stem.replace("__main__", f"python -m {science.package}"))
    parser.add_argument("--version", action="version", version=f"free-ml-stack {__version__}")
    commands = parser.add_subparsers(dest="COMMAND", metavar="COMMAND", required=True)
    for name, command in all_commands().items():
        text = (command.run.__doc__ or "").strip()
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=SET)
        if name in arguments:
            command.add_arguments(one, science)
    return parser.parse_args(arguments)


def overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Parse NAME=VALUE pairs. Raises StackError for a pair without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise StackError(f"--set {pair}: expected NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def demo(science: "Science", settings: "Settings", args: argparse.Namespace) -> int:
    """Run all steps one after another, with a report at the end."""
    started = time.perf_counter()  # before the imports
    from free_ml_stack.cli import demo

    commands = all_commands()

    def run_command(name: str, given: "Settings") -> int:
        return commands[name].run(science, given, parse(science, [name]))

    return demo.demo(science, settings, run_command, started)


def all_commands() -> dict[str, Command]:
    """Return all commands by name, including `demo`, which runs the others."""
    return {command.name: command for command in (*COMMANDS, Command("demo", demo))}
