"""The project's `predict.py` as an Algorithmia algorithm, based on the ADK.

`deploy --target algorithmia` adds predict.py, the manifest of the model's files with their checksums, and a test
case to this folder.
"""

import json
import shutil
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from Algorithmia import ADK

from . import predict

CASES = Path("TEST_CASES.json")

# The ADK (1.2.4) calls format_exception(etype=…), a parameter that was removed in Python 3.10. Without this patch, the
# first error ends the process and the caller gets no response.
vars(import_module("adk.io"))["traceback"] = SimpleNamespace(
    format_exception=lambda etype, value, tb: traceback.format_exception(value)
)


def load(state: Any) -> Any:
    """Move the model's files, which the ADK has downloaded and verified, into one folder, and load the model."""
    folder = Path(tempfile.mkdtemp())
    for name in list(state.models):
        shutil.move(state.get_model(name), folder / name)
    state["model"] = predict.load(folder)
    return state


def apply(input: Any, state: Any) -> Any:
    """Run the model on one input; invalid inputs are reported as InputError."""
    try:
        return predict.apply(input, state["model"])
    except ValueError as error:
        error.error_type = "InputError"  # type: ignore[attr-defined]  # read by the ADK
        raise


algorithm = ADK(apply, load)
algorithm.init(json.loads(CASES.read_text())[0]["input"] if CASES.exists() else None)
