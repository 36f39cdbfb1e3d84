"""Metrics compared with scikit-learn's, including absent classes, and the plots."""

import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from free_ml_stack.evaluation import plots
from free_ml_stack.evaluation.classification import classification
from free_ml_stack.evaluation.drift import drift, reference
from free_ml_stack.evaluation.page import report
from free_ml_stack.evaluation.regression import regression
from free_ml_stack.evaluation.result import headline, metric_text, tables_with_pictures

PNG = b"\x89PNG"
QUANTITIES = {
    name: ([f"≤ {end / 7:g}" for end in range(5)], [0.2] * 5, [0.2] * 5) for name in ("mean", "deviation", "x")
}


def answers(rows: int, classes: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 2 * np.eye(classes)[labels] * rng.random((rows, 1))
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("absent", [(), (1,), (0, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_equal_scikit_learn(absent: tuple[int, ...], seed: int) -> None:
    from sklearn import metrics as sk

    shares, labels = answers(200, 5, seed)
    kept = ~np.isin(labels, absent)
    shares, labels = shares[kept], labels[kept]
    if seed % 2:  # not predicted either
        shares[:, list(absent)] = 0
        shares /= shares.sum(axis=1, keepdims=True)
    found = classification(shares, labels, list("abcde"))
    predicted = shares.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk._classification.UndefinedMetricWarning)
        precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted, average="macro")
        each = sk.precision_recall_fscore_support(labels, predicted, labels=range(5))
    known = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "log_loss": sk.log_loss(labels, shares, labels=range(5)),
    }
    assert {name: found.metrics[name] for name in known} == pytest.approx(known)
    assert next(iter(found.metrics)) == "accuracy"
    rows = found.tables["per_class"][1]
    assert [row[0] for row in rows] == list("abcde")
    for column, values in enumerate(each, 1):
        assert [row[column] for row in rows] == pytest.approx(list(values), abs=1e-4)


def test_perfect_predictions_with_an_absent_class_score_one() -> None:
    found = classification(np.eye(3)[[0, 2, 0]], [0, 2, 0], ["a", "b", "c"])
    assert [found.metrics[name] for name in ("accuracy", "f1", "precision", "recall")] == [1, 1, 1, 1]
    assert found.metrics["calibration_error"] == 0


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    shares = np.tile([0.75, 0.25], (100, 1))
    right = [0] * 75 + [1] * 25
    assert classification(shares, right, ["a", "b"]).metrics["calibration_error"] == pytest.approx(0)
    assert classification(shares, [0] * 100, ["a", "b"]).metrics["calibration_error"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("shares", "labels", "reason"),
    [
        ([[0.5, 0.5]], [2], "from 0 to 1"),
        ([[0.5, 0.5]], [-1], "from 0 to 1"),
        ([[0.5, 0.5]], [0.0], "integers"),
        ([[0.5, float("nan")]], [0], "not finite"),
        ([[0.5, 0.5]], [0, 1], "expected probabilities"),
        ([[1.0]], [0], "expected probabilities"),
        (np.zeros((0, 2)), [], "expected probabilities"),
    ],
)
def test_invalid_classification_inputs_raise_value_error(shares: Any, labels: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        classification(shares, labels, ["a", "b"])


@pytest.mark.parametrize("outputs", [None, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_regression_metrics_equal_scikit_learn(outputs: int | None, seed: int) -> None:
    from sklearn import metrics as sk

    rng = np.random.default_rng(seed)
    shape = (150,) if outputs is None else (150, outputs)
    true = rng.normal(10, 3, shape)
    if outputs == 3:
        true[:, 1] = 7  # R² of a constant
    predicted = true + rng.normal(0, 1, shape)
    known = {
        "rmse": sk.root_mean_squared_error(true, predicted),
        "mae": sk.mean_absolute_error(true, predicted),
        "r2": sk.r2_score(true, predicted),
    }
    assert dict(regression(predicted, true).metrics) == pytest.approx(known)
    assert regression(true, true).metrics["r2"] == sk.r2_score(true, true) == 1


def test_invalid_regression_inputs_raise_value_error() -> None:
    with pytest.raises(ValueError, match="same shape"):
        regression([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        regression([float("inf")], [1.0])


def overlapping(axis: Axis) -> list[str]:
    """The labels of an axis that overlap the next one, in a figure that was saved."""
    labels = [label for label in axis.get_ticklabels() if label.get_text()]
    return [
        f"{one.get_text()} | {other.get_text()}"
        for one, other in pairwise(labels)
        if one.get_window_extent().overlaps(other.get_window_extent())
    ]


@pytest.mark.parametrize("length", [1, 60])
@pytest.mark.parametrize("classes", [2, 10, 21, 100])
def test_class_names_are_readable(classes: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda *given, **options: (figures.append(given[0]), save(*given, **options))
    )
    names = [f"{'a' * (length - 1)}{number}" for number in range(classes)]
    plots.confusion(np.eye(classes, dtype=np.int64), names, tmp_path / "a.png")
    plots.histograms(
        {"label": (names, [1 / classes] * classes, [1 / classes] * classes)} | QUANTITIES, tmp_path / "b.png"
    )
    plots.bars(dict.fromkeys(names, 0.5), "share", "Shares", tmp_path / "c.png")
    assert len(figures) == 3
    for axes in (axes for figure in figures for axes in figure.axes):
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert len(set(shown)) == len(shown)
        assert overlapping(axes.xaxis) + overlapping(axes.yaxis) == []


def test_a_confusion_matrix_of_thousands_of_classes_needs_little_memory(tmp_path: Path) -> None:
    counts = np.eye(4000, dtype=np.int64)
    tracemalloc.start()
    try:
        plots.confusion(counts, range(4000), tmp_path / "many.png")
        assert tracemalloc.get_traced_memory()[1] < 2 * counts.nbytes
    finally:
        tracemalloc.stop()
    lines = np.asarray(Image.open(tmp_path / "many.png").convert("L")) < 100
    assert lines.sum(axis=0).max() < 2000 and lines.any(axis=1).mean() > 0.5  # the diagonal from end to end


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_pictures_of_a_classification_are_drawn(classes: int, tmp_path: Path) -> None:
    shares, labels = answers(20 * classes, classes, 0)
    found = classification(shares, labels, [f"class ${number}$ of many" for number in range(classes)])
    for title, draw in found.pictures.items():
        draw(path := tmp_path / f"{title}.png")
        assert path.read_bytes().startswith(PNG)


def test_the_pictures_of_a_regression_are_drawn(tmp_path: Path) -> None:
    true = np.linspace(0, 1, 50)
    for title, draw in regression(true + 0.1, true, "US$").pictures.items():
        draw(path := tmp_path / f"{title}.png")
        assert path.read_bytes().startswith(PNG)


def test_small_and_large_metrics_keep_four_digits() -> None:
    expected = {0.98765: "0.9877", 0.0: "0.0000", 522.4: "522.4000", 1.23456e-30: "1.235e-30", -6.17041e40: "-6.17e+40"}
    assert {value: metric_text(value) for value in expected} == expected
    assert headline("Test", {"rmse": 1e-30}) == ("Test RMSE", "1e-30")


def test_with_metric_adds_a_metric_after_the_headline() -> None:
    found = regression([1.0, 2.0], [1.0, 2.5])
    more = found.with_metric("largest_error", np.float32(0.5))
    assert dict(more.metrics) == {**found.metrics, "largest_error": 0.5}
    assert next(iter(more.metrics)) == "rmse" and type(more.metrics["largest_error"]) is float
    assert more.pictures == found.pictures and "largest_error" not in found.metrics
    with pytest.raises(ValueError, match="largest_error is nan, expected a finite number"):
        found.with_metric("largest_error", float("nan"))


def test_with_bars_adds_a_picture_and_a_table(tmp_path: Path) -> None:
    values = {f"column ${number}$": 1 / (number + 1) for number in range(40)}
    found = regression([1.0], [1.0]).with_bars("feature_importances", "share", values)
    found.pictures["Feature importances"](path := tmp_path / "bars.png")
    assert path.read_bytes().startswith(PNG)
    names, rows = found.tables["feature_importances"]
    assert names == ("name", "share") and len(rows) == 40
    assert tables_with_pictures(
        {"Feature importances": "feature_importances.png", "Other": "other.png"}, found.tables
    ) == {"Feature importances": (names, rows)}


def test_a_drift_plot_of_many_bins_has_the_largest_and_the_sum_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    rare = [0.3 / 40] * 40
    pairs = {"city": ([f"city {n}" for n in range(42)], [0.3, *rare, 0.4], [0.7, *rare, 0.0])}
    plots.histograms(pairs, tmp_path / "drift.png")
    [axes] = figures[0].axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert (names[0], names[-2:], len(names)) == ("city 0", ["city 41", "30 others"], 13)
    heights = [patch.get_height() for patch in axes.patches]
    assert (heights[0], heights[11], heights[13], heights[24]) == (0.3, 0.4, 0.7, 0.0)
    assert [heights[12], heights[25]] == pytest.approx([30 * rare[0]] * 2)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1e6, 1535123, 2e6, 3e6, 4e6], ["≤ 1428000", "– 1814000", "– 2400000", "– 3200000", "> 3200000"]),
        ([0.1, 0.2, 0.3], ["≤ 0.14", "– 0.18", "– 0.22", "– 0.26", "> 0.26"]),
        ([7] * 9, ["≤ 7", "> 7"]),
    ],
)
def test_the_bins_of_numbers_have_short_names(values: list[float], names: list[str]) -> None:
    watched = [{"size": value} for value in values]
    assert drift(reference(watched), watched)["bins"]["size"] == names


def test_the_bins_of_close_numbers_have_distinct_names() -> None:
    watched = [{"size": 1_000_000_001.0 + number / 1000} for number in range(100)]
    names = drift(reference(watched), watched)["bins"]["size"]
    assert len(set(names)) == len(names) == 5


@pytest.mark.parametrize("quantities", [1, 5, 40])
def test_drift_plots_keep_their_shape_for_many_quantities(quantities: int, tmp_path: Path) -> None:
    shares = [1 / 100] * 100
    names = [f"a long ${number}$ category" for number in range(100)]
    pairs = {f"quantity {number}": (names, shares, shares) for number in range(quantities)}
    with Image.open(plots.histograms(pairs, tmp_path / "drift.png")) as picture:
        assert picture.height < 2 * picture.width


def test_a_model_without_watched_quantities_has_an_empty_picture(tmp_path: Path) -> None:
    assert plots.histograms({}, tmp_path / "drift.png").read_bytes().startswith(PNG)


def test_a_page_shows_a_table_below_its_picture(tmp_path: Path) -> None:
    (picture := tmp_path / "a.png").write_bytes(PNG)
    rows = [("name", "share"), ("<b>", 0.5)]
    page = report("Tables", [("what", 1)], {"One": picture, "Two": picture}, tmp_path / "page.html", {"Two": rows})
    text = page.read_text()
    assert text.count("<table>") == 2
    assert text.index("<h2>Two</h2>") < text.index("<tr><td>&lt;b&gt;</td><td>0.5</td></tr>")


@pytest.mark.parametrize("value", [1.0, "Oslo"])
def test_calls_without_a_quantity_are_drift(value: Any) -> None:
    """But not if training rows lacked it as often."""
    always, never, half = [{"place": value}] * 100, [{"other": 1.0}] * 100, [{"place": value}, {"place": None}] * 50
    found = drift(reference(always), never)
    assert found["verdict"] == "strong"
    assert found["bins"]["place"][-1] == "missing"
    counts = found["counts"]["place"]
    assert (sum(counts["reference"][:-1]), counts["calls"][-1]) == (100, 100)
    assert drift(reference(always), always)["bins"]["place"][-1] != "missing"
    assert drift(reference(half), half)["verdict"] == "none"
    assert drift(reference(half), always)["verdict"] == "strong"


@pytest.mark.parametrize("quantities", [1, 30])
def test_random_variation_is_not_reported_as_drift(quantities: int) -> None:
    chance = np.random.default_rng(0)

    def calls(rows: int, shift: float = 0.0) -> list[dict[str, Any]]:
        numbers = chance.normal(size=(rows, quantities)) + shift
        sexes = np.where(chance.random(rows) + shift > 0.5, "male", "female")
        return [{"sex": str(sex)} | dict(enumerate(row)) for sex, row in zip(sexes, numbers.tolist(), strict=True)]

    known = reference(calls(250))
    verdicts = [drift(known, calls(50))["verdict"] for _ in range(100)]
    assert verdicts.count("none") >= 96
    assert drift(known, calls(50, 1.0))["verdict"] == "strong"
