"""Arbitrary answers give a one-line error or valid files, and are never executed."""

import pytest
from answering import any_answers, holds
from hypothesis import HealthCheck, example, given, settings

AWKWARD = "a'b\"c\\ #d: {{ 7*7 }} {% raw %} $(id) `id` \U0001f600 \u05e9\u05dc\u05d5\u05dd 1"


@pytest.mark.parametrize(
    "text",
    [
        AWKWARD,
        "x" * 200,
        "- a",
        "1. a",
        "=",
        "\u05e9\u05dc\u05d5\u05dd",
        "&#35; &amp;",
        "a\u00a0b",
        "[x]: y",
        "    indented",
    ],
)
def test_unusual_valid_texts_are_accepted(text):
    assert holds({"project_name": text, "description": text, "author_name": text})


@pytest.mark.slow
@given(any_answers)
@example({"project_name": AWKWARD, "description": AWKWARD, "author_name": AWKWARD})
@example({"project_name": "x" * 200, "description": "x" * 200, "author_name": "x" * 200})
@example({"project_name": "3D", "description": "1. a", "author_name": "-"})
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_text_is_rejected_or_rendered_correctly(answers):
    holds(answers)
