"""Serve Echo from a folder like a project's `serve` command: FOLDER [WORKERS [PORT]]."""

import sys
from pathlib import Path

from deployed import open_app
from places import link_skeletons  # noqa: F401 - puts the skeleton on the path

from free_ml_stack.errors import StackError
from free_ml_stack.gateway.serve import serve

if __name__ == "__main__":
    root, workers, port, *_ = *sys.argv[1:], *("1", "0")[len(sys.argv) - 2 :]
    try:
        serve(
            lambda keys: open_app(Path(root) / "data", keys=keys)[1],
            workers=int(workers),
            port=int(port),
            record=Path(root) / "gateway.json",
            say=lambda line: print(line, flush=True),
        )
    except StackError as error:
        sys.exit(str(error))
    print("stopped", flush=True)
