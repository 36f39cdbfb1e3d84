"""The algorithm answers its test cases; Algorithmia runs this at each build."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

CONF = json.loads(Path("algorithmia.conf").read_text())
CASES = json.loads(Path("TEST_CASES.json").read_text())
algorithm = importlib.import_module(f"src.{CONF['algoname']}")


def alike(one: Any, other: Any) -> bool:
    """Whether two JSON documents are equal, numbers to 1e-5."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("case", CASES, ids=[case["case_name"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    """The model that was deployed is the model that answers."""
    assert alike(algorithm.apply(case["input"], algorithm.algorithm.load_result), case["expected_output"])


def test_bad_input_is_the_callers_mistake() -> None:
    """What predict.py refuses is reported as InputError."""
    with pytest.raises(ValueError) as raised:
        algorithm.apply(None, algorithm.algorithm.load_result)
    assert raised.value.error_type == "InputError"  # type: ignore[attr-defined]
