"""The library behind generated projects: storage, tracking, sweeps, publishing and deployment for their models."""

from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import flag

__all__ = ["StackError", "flag", "main"]


def main(package: str) -> None:
    """Run the command line of a project with `sys.argv`, and exit with its code.

    `package` is the import name of the project's package, which holds config, data, model, train and predict. The
    exit code is 0 on success, 1 after an error (one line on standard error), 2 for wrong arguments, 75 if training
    was preempted and can be resumed, and 130 after an interrupt.
    """
    from free_ml_stack.cli.main import main as run_command_line  # not needed to check credentials

    run_command_line(package)
