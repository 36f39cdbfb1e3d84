"""torchrun with the exit code of training: `python -m free_ml_stack.launch.torchrun` takes the arguments of torchrun.

torchrun itself ends with 1, whether training failed, was stopped by SIGTERM, or ended with 75 and can be resumed.
"""

import sys
from collections.abc import Sequence

from free_ml_stack.tracking.tracker import PREEMPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; return 0, 75 if a signal stopped it or a process ended with 75, or the first process's code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(arguments)
    except SignalException:
        return PREEMPTED
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        first: int = error.get_first_failure()[1].exitcode
        return PREEMPTED if PREEMPTED in codes else first if first > 0 else 128 - first  # a signal, as a shell gives it
    return 0


if __name__ == "__main__":
    sys.exit(main())
