"""Data drift: the distance between the calls of a deployed model and its training data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

QUANTILES = (0.2, 0.4, 0.6, 0.8)  # of the reference: bin edges of a number
MODERATE, STRONG = 0.1, 0.25  # conventional thresholds of the population stability index
MIN_CALLS = 30  # fewer give no verdict
MISSING = "missing"  # bin of calls without the quantity
FALSE_ALARM_RATE = 0.01  # of a verdict, over all quantities (Bonferroni)

Watched = Mapping[str, Any]  # name to number or category (text) of one call


def reference(watched: Sequence[Watched]) -> dict[str, Any]:
    """Compute the reference distributions: counts of each category, and of each number in quintiles.

    `watched` are the return values of predict.py's `watch`: numbers, and categories as text.
    """
    numbers, categories = _numbers(watched), _categories(watched)
    edges = {name: np.unique(np.quantile(values, QUANTILES)) for name, values in numbers.items()}
    return {
        "rows": len(watched),
        "categories": {name: dict(sorted(counts.items())) for name, counts in categories.items()},
        "numbers": {
            name: {"edges": edges[name].tolist(), "counts": _counts(values, edges[name])}
            for name, values in numbers.items()
        },
    }


def drift(known: Mapping[str, Any], watched: Sequence[Watched]) -> dict[str, Any]:
    """Compare calls with the reference `known`, quantity by quantity.

    `scores` are population stability indices minus their expectation without drift. `verdict` is "none", "moderate"
    (from 0.1) or "strong" (from 0.25), by the largest significant score, or "too few calls" below 30. Calls without a
    quantity are a bin of their own.
    """
    numbers, categories = _numbers(watched), _categories(watched)
    pairs: dict[str, tuple[list[int], list[int]]] = {}
    bins: dict[str, list[str]] = {}
    for name, before in known["categories"].items():
        after = categories.get(name, Counter())
        bins[name] = sorted({*before, *after})
        pairs[name] = ([before.get(value, 0) for value in bins[name]], [after[value] for value in bins[name]])
    for name, part in known["numbers"].items():
        bins[name] = _ranges(part["edges"])
        pairs[name] = (part["counts"], _counts(numbers.get(name, []), np.asarray(part["edges"])))
    for name, (expected, found) in pairs.items():
        missing = (known["rows"] - sum(expected), len(watched) - sum(found))
        if any(missing):
            bins[name] = [*bins[name], MISSING]
            pairs[name] = ([*expected, missing[0]], [*found, missing[1]])
    scores = {name: stability_index(*pair) for name, pair in pairs.items()}
    significant = [
        scores[name]
        for name, pair in pairs.items()
        if scores[name] > chance_level(*pair, FALSE_ALARM_RATE / len(pairs))
    ]
    worst = max(significant, default=0.0)
    verdict = "strong" if worst >= STRONG else "moderate" if worst >= MODERATE else "none"
    return {
        "calls": len(watched),
        "verdict": verdict if len(watched) >= MIN_CALLS else "too few calls",
        "scores": scores,
        "bins": bins,
        "counts": {name: {"reference": before, "calls": after} for name, (before, after) in pairs.items()},
    }


def stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """Compute the population stability index of two lists of counts, minus its expectation without drift.

    Half a count is added to each bin, so that empty bins stay finite. The expectation is (bins - 1) times the sum of
    the inverse sizes (Yurdakul and Naranjo, 2020).
    """
    one, other = np.asarray(before, float) + 0.5, np.asarray(after, float) + 0.5
    chance = (len(one) - 1) * (1 / one.sum() + 1 / other.sum())
    one, other = one / one.sum(), other / other.sum()
    return max(0.0, float(((other - one) * np.log(other / one)).sum() - chance))


def chance_level(before: Sequence[int], after: Sequence[int], rate: float) -> float:
    """Compute the index, minus its expectation, that is exceeded at `rate` without drift.

    The scaled index follows a chi-squared distribution; its quantile is the approximation of Wilson and Hilferty
    (1931).
    """
    degrees = max(len(before) - 1, 1)
    spread = 2 / (9 * degrees)
    quantile = degrees * (1 - spread + NormalDist().inv_cdf(1 - rate) * sqrt(spread)) ** 3
    return (1 / max(sum(before), 1) + 1 / max(sum(after), 1)) * (quantile - degrees)


def _numbers(watched: Sequence[Watched]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for call in watched:
        for name, value in call.items():
            if value is not None and not isinstance(value, str):  # NaN is null in JSON
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
    """Name the bins between distinct edges, with as many digits as distinguish them."""
    texts = ([f"{float(f'{edge:.{digits}g}'):.{max(digits, 7)}g}" for edge in edges] for digits in range(4, 18))
    ends = next(each for each in texts if len(set(each)) == len(edges))
    return [f"≤ {ends[0]}", *(f"– {end}" for end in ends[1:]), f"> {ends[-1]}"] if ends else ["all"]
