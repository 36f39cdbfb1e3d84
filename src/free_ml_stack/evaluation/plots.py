"""Plots of a project: learning curves, confusion matrix, sweep, latency, drift. Each function writes one PNG."""

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from free_ml_stack.evaluation import fonts

BLUE, ORANGE, GREY = "#3566b8", "#d9822b", "#8a8f98"
WIDTH, HEIGHT = 6.4, 3.6  # inches
DPI = 120
DECADE = 10
VALIDATION, PANELS = "validation_", 3  # prefix of validation metrics; maximum number of panels
NUMBERED, CELLS = 20, 1000  # maximum number of classes with counts in the cells; of cells on a side
TICKS, PANE_TICKS = 25, 13  # maximum number of labels on an axis of a picture; of bins of a histogram
LETTER = 0.075  # inches per character of a label
BARS, ACROSS, PANES = 30, 4, 12  # maximum number of bars; of histograms in a row; in a picture


def learning_curves(record: Path, path: Path) -> Path:
    """Draw the first three metrics of a metrics.jsonl that have a `validation_` value, with the training values."""
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    names = dict.fromkeys(name for row in rows for name in row)
    measures = [name.removeprefix(VALIDATION) for name in names if name.startswith(VALIDATION)][:PANELS]
    figure = Figure((WIDTH * max(len(measures), 1) * 0.75, HEIGHT))
    panels = np.atleast_1d(figure.subplots(1, max(len(measures), 1)))
    for axes, measure in zip(panels, measures, strict=False):
        _line(axes, rows, measure, "training", GREY)
        _line(axes, rows, VALIDATION + measure, "validation", BLUE)
        axes.set(xlabel="step", title=_literal(measure.replace("_", " ").capitalize()))
        values = [row[name] for row in rows for name in (measure, VALIDATION + measure) if name in row]
        if min(values) > 0 and max(values) > DECADE * min(values):
            axes.set_yscale("log")
        axes.legend(frameon=False)
    return _save(figure, path)


def confusion(counts: NDArray[np.int64], names: Sequence[Any], path: Path) -> Path:
    """Draw the confusion matrix (classes, classes) with the true class in rows; more than 1,000 classes in groups."""
    classes = len(names)
    starts = range(0, classes, -(-classes // CELLS))
    if starts.step > 1:  # an image of all classes takes gigabytes
        counts = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    side = HEIGHT * min(max(1.2, classes / 8), 4)  # constant cell size up to four times the usual height
    places = range(0, classes, -(-classes // TICKS))
    labels = [_short(name) for name in _drawable(names)[:: places.step]]
    longest = max(map(fonts.width, labels))
    turned = longest * LETTER * len(labels) > side * 0.8  # wider than the axes
    figure = Figure((side * 1.15 + longest * LETTER, side + turned * longest * LETTER))
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    ends = (-0.5, classes - 0.5, classes - 0.5, -0.5)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=ends)
    if classes <= NUMBERED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    else:
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix (test split)")
    axes.set_xticks(places, [_literal(label) for label in labels], rotation=90 if turned else 0, fontsize=8)
    axes.set_yticks(places, [_literal(label) for label in labels], fontsize=8)
    return _save(figure, path)


def calibration(confident: NDArray[np.float64], right: NDArray[np.float64], path: Path) -> Path:
    """Draw a reliability diagram: accuracy (bins,) over mean confidence (bins,)."""
    figure = Figure((HEIGHT * 1.3, HEIGHT * 1.2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, label="perfectly calibrated")
    axes.plot(confident, right, color=BLUE, marker="o", label="model", clip_on=False)
    axes.set(
        xlabel="mean confidence",
        ylabel="accuracy",
        title="Calibration (test split)",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(frameon=False)
    return _save(figure, path)


def scatter(true: NDArray[np.float64], predicted: NDArray[np.float64], unit: str, path: Path) -> Path:
    """Draw predictions (n,) against true values (n,), both in `unit`."""
    figure = Figure((HEIGHT * 1.3, HEIGHT * 1.2))
    axes = figure.subplots()
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, lw=1)
    axes.scatter(true, predicted, s=8, color=BLUE, alpha=max(0.05, min(0.6, 300 / len(true))), linewidths=0)
    axes.set(xlabel=_with_unit("true", unit), ylabel=_with_unit("predicted", unit), title="Test split")
    return _save(figure, path)


def residuals(errors: NDArray[np.float64], unit: str, path: Path) -> Path:
    """Draw a histogram of the errors (n,) in `unit`."""
    figure = Figure((WIDTH, HEIGHT))
    axes = figure.subplots()
    span = float(np.abs(errors).max()) or 1.0
    axes.hist(errors, bins=min(60, max(10, len(errors) // 10)), range=(-span, span), color=BLUE)
    axes.axvline(0, color=GREY, lw=1)
    axes.set(xlabel=_with_unit("predicted minus true", unit), ylabel="examples", title="Residuals (test split)")
    return _save(figure, path)


def bars(values: Mapping[str, float], quantity: str, title: str, path: Path) -> Path:
    """Draw a bar chart of the first 30 values, which measure `quantity`."""
    names = list(values)[:BARS]
    figure = Figure((WIDTH, max(HEIGHT / 2, 0.22 * len(names) + 0.9)))
    axes = figure.subplots()
    drawn = axes.barh(range(len(names)), [values[name] for name in names], color=BLUE)
    axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), [_literal(_short(name)) for name in _drawable(names)], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel=_literal(quantity), title=_literal(title))
    return _save(figure, path)


def latency(milliseconds: NDArray[np.float64], path: Path) -> Path:
    """Draw a histogram of call durations with the median and the 99th percentile."""
    figure = Figure((WIDTH, HEIGHT))
    axes = figure.subplots()
    axes.hist(milliseconds, bins=40, color=BLUE)
    for share, color in ((50, GREY), (99, ORANGE)):
        value = float(np.percentile(milliseconds, share))
        axes.axvline(value, color=color, label=f"p{share} = {value:.1f} ms")
    axes.set(xlabel="milliseconds per call", ylabel="calls", title="Latency")
    axes.legend(frameon=False)
    return _save(figure, path)


def histograms(pairs: Mapping[str, tuple[Sequence[Any], Sequence[float], Sequence[float]]], path: Path) -> Path:
    """Draw the distributions in training and in the calls side by side, for the first twelve quantities.

    `pairs` maps each title to the names of the bins, their shares in training and their shares in the calls. Of more
    than 13 bins the largest are drawn.
    """
    kept = list(pairs.items())[:PANES]
    across = min(ACROSS, max(len(kept), 1))
    down = -(-len(kept) // across) or 1
    figure = Figure((WIDTH * 1.6, HEIGHT * down * (1 if down == 1 else 0.7)))
    panels = figure.subplots(down, across, squeeze=False).flat
    titles = _drawable([title for title, _ in kept])
    for axes, title, (_, (bins, reference, current)) in zip(panels, titles, kept, strict=False):
        bins, shares = _largest(bins, reference, current)
        for each, side, color, label in zip(shares, (-0.2, 0.2), (GREY, BLUE), ("training", "calls"), strict=True):
            axes.bar([place + side for place in range(len(bins))], each, 0.4, color=color, label=label)
        names = [_literal(_short(name, 12)) for name in _drawable(bins)]
        turned = sum(fonts.width(name) + 1 for name in names) > TICKS
        axes.set_xticks(range(len(bins)), names, fontsize=7, rotation=90 if turned else 0)
        axes.set_title(_literal(_short(title)), fontsize=10)
    for axes in list(figure.axes)[len(kept) :]:
        axes.remove()
    for axes in figure.axes[:1]:  # none if no quantity is watched
        axes.set_ylabel("share")
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
    return _save(figure, path)


def _largest(bins: Sequence[Any], *shares: Sequence[float]) -> tuple[list[Any], list[list[float]]]:
    """Return the bins with the largest of the shares, in their order, and the sum of the others as the last one."""
    if len(bins) <= PANE_TICKS:
        return list(bins), [list(each) for each in shares]
    kept = sorted(np.max(shares, axis=0).argsort(kind="stable")[1 - PANE_TICKS :])
    found = [[each[place] for place in kept] for each in shares]
    rest = [sum(each) - sum(some) for each, some in zip(shares, found, strict=True)]
    names = [*(bins[place] for place in kept), f"{len(bins) - len(kept)} others"]
    return names, [[*some, last] for some, last in zip(found, rest, strict=True)]


def sweep(trials: Sequence[Mapping[str, Any]], weights: Mapping[str, float], metric: str, path: Path) -> Path:
    """Draw the trials as parallel coordinates, better ones darker, beside the importance of each parameter."""
    names = [name for name in trials[0]["config"] if len({str(trial["config"].get(name)) for trial in trials}) > 1]
    figure = Figure((WIDTH * 1.7, HEIGHT))
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    columns = [_places([trial["config"].get(name) for trial in trials]) for name in names]
    columns.append(_places([trial["value"] for trial in trials]))
    for rank, heights in reversed(list(enumerate(zip(*columns, strict=True)))):
        shade = 1 - 0.8 * rank / len(trials)
        # markers, because one column alone has no line
        left.plot(heights, color=BLUE if rank else ORANGE, alpha=shade, lw=1 if rank else 2.5, marker=".")
    left.set_xticks(range(len(columns)), [*names, _literal(metric)], rotation=20, ha="right", fontsize=8)
    count = f"{len(trials)} trials" if len(trials) > 1 else "1 trial"
    left.set(yticks=[0, 1], yticklabels=["low", "high"], title=f"{count}, the best in orange")
    right.barh(list(weights), list(weights.values()), color=BLUE)
    if not weights:
        right.set_yticks([])
    right.set(title="Importance" if weights else "Importance: too few trials", xlim=(0, 1))
    right.tick_params(labelsize=8)
    return _save(figure, path)


def _places(values: Sequence[Any]) -> list[float]:
    """Scale values to 0 to 1: numbers linearly, or by logarithm if they span a decade; other values by rank."""
    if not all(isinstance(value, int | float) for value in values):
        ranks = sorted({str(value) for value in values})
        return [ranks.index(str(value)) / max(len(ranks) - 1, 1) for value in values]
    numbers = np.asarray(values, dtype=float)
    if numbers.min() > 0 and numbers.max() / numbers.min() > DECADE:
        numbers = np.log(numbers)
    span = numbers.max() - numbers.min()
    heights: list[float] = ((numbers - numbers.min()) / span if span else np.full(len(numbers), 0.5)).tolist()
    return heights


def _line(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, title: str, color: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=title)


def _with_unit(name: str, unit: str) -> str:
    [known] = fonts.drawable([unit])
    return f"{name} ({_literal(known)})" if known else name


def _drawable(names: Sequence[Any]) -> list[str]:
    """Return names without characters that no installed font has, or their numbers if that leaves no distinct name."""
    cut = fonts.drawable([str(name) for name in names])
    counts = Counter(cut)
    return [
        text if text == str(name) or (text and counts[text] == 1) else f"no. {number}"
        for number, (name, text) in enumerate(zip(names, cut, strict=True), 1)
    ]


def _short(name: Any, most: int = 24) -> str:
    text, end = str(name), most // 3  # long names often differ in their ends only
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}"


def _literal(name: Any) -> str:
    """Escape dollar signs, between which matplotlib would parse mathematics."""
    return str(name).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> Path:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    texts: list[Any] = figure.findobj(Text)
    family = fonts.families("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_family(family)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # invisible ones, such as the joiners of emoji
        figure.set_dpi(DPI)  # before the layout, which measures and caches texts at this resolution
        figure.tight_layout()
        figure.set_layout_engine(None)  # otherwise savefig draws the figure twice
        figure.savefig(path)
    return path
