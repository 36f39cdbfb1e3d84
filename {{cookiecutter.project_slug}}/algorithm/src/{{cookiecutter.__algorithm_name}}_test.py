"""Test cases of the algorithm, run by Algorithmia at each build."""

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
    """Return whether two JSON documents are equal, with a tolerance of 1e-5 for numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("case", CASES, ids=[case["case_name"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    """The deployed model gives the recorded output."""
    assert alike(algorithm.apply(case["input"], algorithm.algorithm.load_result), case["expected_output"])


def test_invalid_input_raises_input_error() -> None:
    """Inputs that predict.py rejects are reported as InputError."""
    with pytest.raises(ValueError) as raised:
        algorithm.apply(None, algorithm.algorithm.load_result)
    assert raised.value.error_type == "InputError"  # type: ignore[attr-defined]
