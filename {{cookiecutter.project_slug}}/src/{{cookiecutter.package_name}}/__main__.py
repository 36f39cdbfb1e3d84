"""The command line: hands the science to the wiring."""

from .config import TrainConfig
from .stack.cli import run
from .stack.science import Science


def main() -> None:
    """Run the command that the arguments name."""
    raise SystemExit(run(Science(__package__, TrainConfig)))


if __name__ == "__main__":
    main()
