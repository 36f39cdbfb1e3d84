"""Drift: how far the calls of a deployed model are from the data that it was trained on."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BINS = 5  # of a numeric quantity: fifths of the reference
MODERATE, STRONG = 0.1, 0.25  # the usual reading of the index
FEW = 30  # calls, below which nothing is said


def reference(
    answers: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What normal looks like: counts of the classes, and of each numeric quantity in fifths.

    `answers` hold `label` and `confidence`, `summaries` the statistics of the inputs; both in the same order.
    """
    numbers = _numbers(answers, summaries)
    edges = {
        name: np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
        for name, values in numbers.items()
    }
    return {
        "rows": len(answers),
        "label": dict(sorted(_labels(answers).items())),
        "numeric": {
            name: {"edges": edges[name].tolist(), "counts": _counts(values, edges[name])}
            for name, values in numbers.items()
        },
    }


def drift(
    known: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """The distance of some calls from the reference `known`, by quantity, and a verdict.

    `scores` are population stability indices less what chance alone gives for so many calls. `verdict` is none,
    moderate (from 0.1) or strong (from 0.25) after the largest of them, or "too few calls".
    """
    labels, numbers = _labels(answers), _numbers(answers, summaries)
    names = sorted({*known["label"], *labels})
    pairs = {
        "label": ([known["label"].get(name, 0) for name in names], [labels.get(name, 0) for name in names])
    }
    for name, part in known["numeric"].items():
        pairs[name] = (part["counts"], _counts(numbers.get(name, []), np.asarray(part["edges"])))
    scores = {name: stability_index(*pair) for name, pair in pairs.items()}
    worst = max(scores.values())
    verdict = "strong" if worst >= STRONG else "moderate" if worst >= MODERATE else "none"
    return {
        "calls": len(answers),
        "verdict": verdict if len(answers) >= FEW else "too few calls",
        "scores": scores,
        "bins": {"label": names, **{name: _ranges(part["edges"]) for name, part in known["numeric"].items()}},
        "counts": {name: {"reference": before, "calls": after} for name, (before, after) in pairs.items()},
    }


def stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """The population stability index of two lists of counts, less its expectation without any drift.

    Half a count is added to each bin, so that an empty one stays finite. (Yurdakul and Naranjo, 2020, give the
    expectation: bins less one, times the sum of the inverse sizes.)
    """
    one, other = np.asarray(before, float) + 0.5, np.asarray(after, float) + 0.5
    chance = (len(one) - 1) * (1 / one.sum() + 1 / other.sum())
    one, other = one / one.sum(), other / other.sum()
    return max(0.0, float(((other - one) * np.log(other / one)).sum() - chance))


def _labels(answers: Sequence[Mapping[str, Any]]) -> Counter[str]:
    return Counter(
        label if isinstance(label := answer["label"], str) else json.dumps(label) for answer in answers
    )


def _numbers(
    answers: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, float]]
) -> dict[str, list[float]]:
    names = dict.fromkeys(name for summary in summaries for name in summary)
    numbers = {name: [summary[name] for summary in summaries if name in summary] for name in names}
    return {"confidence": [answer["confidence"] for answer in answers if "confidence" in answer], **numbers}


def _counts(values: Sequence[float], edges: np.ndarray[Any, np.dtype[Any]]) -> list[int]:
    places = np.searchsorted(edges, values, side="left")
    return np.bincount(places, minlength=len(edges) + 1).tolist() if len(values) else [0] * (len(edges) + 1)


def _ranges(edges: Sequence[float]) -> list[str]:
    ends = [f"{edge:.3g}" for edge in edges]
    return [f"≤ {ends[0]}", *(f"– {end}" for end in ends[1:]), f"> {ends[-1]}"] if ends else ["all"]
