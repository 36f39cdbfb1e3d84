"""The command line: hands the science to the wiring."""

import io
import sys

from .config import TrainConfig
from free_ml_stack.cli.main import run
from free_ml_stack.project.science import Science


def main() -> None:
    """Run the command that the arguments name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a folder's name may not fit the code page of a pipe
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(run(Science(__package__, TrainConfig)))


if __name__ == "__main__":
    main()
