"""Drift: how far the calls of a deployed model are from the data that it was trained on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

FIFTHS = (0.2, 0.4, 0.6, 0.8)  # of the reference, for a number
MODERATE, STRONG = 0.1, 0.25  # the usual reading of the index
FEW = 30  # calls, below which nothing is said
ALARMS = 0.01  # share of verdicts that may come of chance alone, however many quantities there are

Watched = Mapping[str, Any]  # numbers and categories (text) of a call, by name


def reference(watched: Sequence[Watched]) -> dict[str, Any]:
    """Count what is normal: each category by its value, each number in fifths.

    `watched` are what predict.py's `watch` names of calls: numbers, and categories as text.
    """
    numbers, categories = _numbers(watched), _categories(watched)
    edges = {name: np.unique(np.quantile(values, FIFTHS)) for name, values in numbers.items()}
    return {
        "rows": len(watched),
        "categories": {name: dict(sorted(counts.items())) for name, counts in categories.items()},
        "numbers": {
            name: {"edges": edges[name].tolist(), "counts": _counts(values, edges[name])}
            for name, values in numbers.items()
        },
    }


def drift(known: Mapping[str, Any], watched: Sequence[Watched]) -> dict[str, Any]:
    """Compare some calls with the reference `known`, by quantity, and give a verdict.

    `scores` are population stability indices less what chance alone gives for so many calls. `verdict` is none,
    moderate (from 0.1) or strong (from 0.25) after the largest that chance does not explain, or "too few calls".
    """
    numbers, categories = _numbers(watched), _categories(watched)
    pairs, bins = {}, {}
    for name, before in known["categories"].items():
        after = categories.get(name, Counter())
        bins[name] = sorted({*before, *after})
        pairs[name] = ([before.get(value, 0) for value in bins[name]], [after[value] for value in bins[name]])
    for name, part in known["numbers"].items():
        bins[name] = _ranges(part["edges"])
        pairs[name] = (part["counts"], _counts(numbers.get(name, []), np.asarray(part["edges"])))
    scores = {name: stability_index(*pair) for name, pair in pairs.items()}
    beyond = [scores[name] for name, pair in pairs.items() if scores[name] > by_chance(*pair, ALARMS / len(pairs))]
    worst = max(beyond, default=0.0)
    verdict = "strong" if worst >= STRONG else "moderate" if worst >= MODERATE else "none"
    return {
        "calls": len(watched),
        "verdict": verdict if len(watched) >= FEW else "too few calls",
        "scores": scores,
        "bins": bins,
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


def by_chance(before: Sequence[int], after: Sequence[int], share: float) -> float:
    """The index that two lists of counts exceed in a `share` of cases without any drift, less its expectation.

    Scaled, it is distributed as chi-squared, whose quantiles Wilson and Hilferty (1931) approximate.
    """
    degrees = max(len(before) - 1, 1)
    spread = 2 / (9 * degrees)
    quantile = degrees * (1 - spread + NormalDist().inv_cdf(1 - share) * sqrt(spread)) ** 3
    return (1 / max(sum(before), 1) + 1 / max(sum(after), 1)) * (quantile - degrees)


def _numbers(watched: Sequence[Watched]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for call in watched:
        for name, value in call.items():
            if value is not None and not isinstance(value, str):  # JSON has null for NaN
                found.setdefault(name, []).append(float(value))
    return {name: kept for name, values in found.items() if (kept := [value for value in values if isfinite(value)])}


def _categories(watched: Sequence[Watched]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for call in watched:
        for name, value in call.items():
            if isinstance(value, str):
                found.setdefault(name, Counter())[value] += 1
    return found


def _counts(values: Sequence[float], edges: np.ndarray[Any, np.dtype[Any]]) -> list[int]:
    places = np.searchsorted(edges, values, side="left")
    return np.bincount(places, minlength=len(edges) + 1).tolist() if len(values) else [0] * (len(edges) + 1)


def _ranges(edges: Sequence[float]) -> list[str]:
    ends = [f"{edge:.6g}" for edge in edges]
    return [f"≤ {ends[0]}", *(f"– {end}" for end in ends[1:]), f"> {ends[-1]}"] if ends else ["all"]
