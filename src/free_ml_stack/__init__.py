"""The wiring between a project's science and its tools: storage, tracking, sweeps, publishing, deployment."""

from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import flag

__all__ = ["StackError", "flag", "main"]


def main(package: str) -> None:
    """Run the command that `sys.argv` names for a project, and exit with its code.

    `package` is the import name of the project's package, which holds config, data, model, train and predict. The
    exit code is 0, 1 after an error (one line on standard error), 2 for wrong arguments, 75 where training was
    stopped and can be resumed, and 130 after an interrupt.
    """
    from free_ml_stack.cli.main import main as run_command_line  # credentials are checked without it

    run_command_line(package)
