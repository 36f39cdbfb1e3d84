"""The project's `predict.py` as an Algorithmia algorithm, on the ADK.

`deploy --target algorithmia` puts beside it what this folder lacks: predict.py, the manifest of the model's
files with their sums, and a test case.
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

# The ADK (1.2.4) calls format_exception(etype=…), a name that Python 3.10 took away: without this, the first
# failure ends the process and the caller gets no answer.
vars(import_module("adk.io"))["traceback"] = SimpleNamespace(
    format_exception=lambda etype, value, tb: traceback.format_exception(value)
)


def load(state: Any) -> Any:
    """Gather the model's files, which the ADK has fetched and verified, in one folder, and load it."""
    folder = Path(tempfile.mkdtemp())
    for name in list(state.models):
        shutil.move(state.get_model(name), folder / name)
    state["model"] = predict.load(folder)
    return state


def apply(input: Any, state: Any) -> Any:
    """Answer one input; a mistake in the input is reported as InputError."""
    try:
        return predict.apply(input, state["model"])
    except ValueError as error:
        error.error_type = "InputError"  # type: ignore[attr-defined]  # the ADK looks for it
        raise


algorithm = ADK(apply, load)
algorithm.init(json.loads(CASES.read_text())[0]["input"] if CASES.exists() else None)
