"""The gateway in a container: a Docker Space, or any host of containers."""

import os
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))
PACKAGE = next(path.parent.name for path in (Path(__file__).parent / "src").glob("*/predict.py"))

if __name__ == "__main__":
    hosted = import_module("free_ml_stack.gateway.hosted")
    predict = import_module(f"{PACKAGE}.predict")
    serve = import_module("free_ml_stack.gateway.serve").serve
    port = int(os.environ.get("PORT", "7860"))
    serve(lambda keys: hosted.gateway(predict, os.environ), keys=[""], host="0.0.0.0", port=port)  # noqa: S104
