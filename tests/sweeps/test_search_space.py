"""Parsing of sweep.yaml, sampling from each distribution, and error messages with their line."""

import math
import re
from pathlib import Path

import numpy as np
import optuna
import pytest
from scipy import stats

from free_ml_stack.errors import StackError
from free_ml_stack.sweeps.search_space import Hyperband, Sweep, metric_value
from free_ml_stack.sweeps.sweep_file import read_sweep

HEAD = "method: random\nmetric: {name: loss}\nparameters:\n"


def sweep(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return read_sweep(path)


def draws(tmp_path: Path, spec: str, count: int = 400) -> list[object]:
    plan = sweep(tmp_path, f"{HEAD}  x: {{{spec}}}\n")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [plan.suggest(study.ask())["x"] for _ in range(count)]


CONTINUOUS = {
    "min: 0.0, max: 2.0": stats.uniform(0, 2),
    "distribution: uniform, min: 1, max: 3": stats.uniform(1, 2),
    "distribution: log_uniform, min: -3, max: 0": stats.loguniform(math.exp(-3), 1),
    "distribution: log_uniform_values, min: 0.01, max: 10": stats.loguniform(0.01, 10),
    "distribution: inv_log_uniform, min: 0, max: 3": stats.loguniform(math.exp(-3), 1),
    "distribution: inv_log_uniform_values, min: 0.1, max: 10": stats.loguniform(0.1, 10),
    "distribution: normal, mu: 3, sigma: 2": stats.norm(3, 2),
    "distribution: normal": stats.norm(0, 1),
    "distribution: log_normal, mu: 1, sigma: 0.5": stats.lognorm(s=0.5, scale=math.e),
    "distribution: beta, a: 2, b: 5": stats.beta(2, 5),
    "distribution: beta": stats.uniform(0, 1),
}


@pytest.mark.parametrize("spec", CONTINUOUS)
def test_each_distribution_has_its_shape(tmp_path: Path, spec: str) -> None:
    assert stats.kstest(draws(tmp_path, spec), CONTINUOUS[spec].cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("spec", "step"),
    [
        ("distribution: q_uniform, min: 0, max: 10, q: 2", 2),
        ("distribution: q_log_uniform, min: 0, max: 4, q: 5", 5),
        ("distribution: q_log_uniform_values, min: 1, max: 100, q: 0.5", 0.5),
        ("distribution: q_normal, mu: 0, sigma: 10, q: 3", 3),
        ("distribution: q_log_normal, mu: 2, sigma: 1, q: 1", 1),
        ("distribution: q_beta, a: 1, b: 1, q: 0.25", 0.25),
    ],
)
def test_a_quantized_distribution_gives_multiples(tmp_path: Path, spec: str, step: float) -> None:
    found = np.array(draws(tmp_path, spec), dtype=float)
    assert np.allclose(found / step, np.round(found / step))
    assert len(set(found)) > 2


def test_integers_values_and_probabilities_are_sampled(tmp_path: Path) -> None:
    assert set(draws(tmp_path, "min: 1, max: 4")) == {1, 2, 3, 4}
    assert set(map(str, draws(tmp_path, "values: [1, relu, null, [1, 2]]"))) == {
        "1",
        "relu",
        "None",
        "[1, 2]",
    }
    rare = draws(tmp_path, "values: [a, b], probabilities: [0.1, 0.9]").count("a")
    assert 20 <= rare <= 62
    assert set(draws(tmp_path, "value: 5")) == {5}


def test_nested_parameters_give_nested_configurations(tmp_path: Path) -> None:
    plan = sweep(tmp_path, HEAD + "  a:\n    parameters:\n      b: {value: 1}\n      c: {values: [2]}\n")
    assert plan.suggest(optuna.create_study().ask()) == {"a": {"b": 1, "c": 2}}


def test_a_grid_is_the_exact_product(tmp_path: Path) -> None:
    text = "method: grid\nmetric: {name: loss}\nparameters:\n"
    text += "  a: {values: [1, 2]}\n  b: {min: 1, max: 3}\n  c: {distribution: q_uniform, min: 0, max: 1, q: 0.5}\n"
    points = [tuple(point.values()) for point in sweep(tmp_path, text).grid()]
    assert sorted(points) == sorted((a, b, c) for a in (1, 2) for b in (1, 2, 3) for c in (0.0, 0.5))


WRONG = {
    "method: random\nmetric: {name: loss}\nparametrs:\n  x: {value: 1}\n": (3, "did you mean 'parameters'"),
    "method: guess\nparameters:\n  x: {value: 1}\n": (1, "expected one of grid, random, bayes"),
    HEAD + "  x: {min: 3.0, max: 1.0}\n": (4, ") must be less than max ("),
    HEAD + "  x: {min: 1, max: 2.0}\n": (4, "must both be integers or both be floats"),
    HEAD + "  x:\n    values: [1, 2]\n    probabilities: [0.5, 0.6]\n": (6, "sum to 1"),
    HEAD + "  x:\n    distribution: log_uniform_values\n    min: 1e-3\n    max: 1.0\n": (6, "write 0.001"),
    HEAD + "  x: {values: [1e-3, 1e-2]}\n": (4, "write 0.001"),
    HEAD + "  x: {distribution: unifrom, min: 0, max: 1}\n": (4, "did you mean 'uniform'"),
    HEAD + "  x: {distribution: log_uniform_values, min: 0, max: 1}\n": (4, "must be above 0"),
    HEAD + "  x: {distribution: q_uniform, min: 0, max: 1, q: 0}\n": (4, "must be above 0"),
    HEAD + "  x: 3\n": (4, "expected a mapping"),
    HEAD + "  x: {values: []}\n": (4, "at least one value"),
    HEAD + "  a:\n    parameters:\n      b: {min: 2, max: 1}\n": (6, ") must be less than max ("),
    "method: random\nmetric: {name: loss, gaol: minimize}\nparameters: {x: {value: 1}}\n": (
        2,
        "did you mean 'goal'",
    ),
    "method: random\nparameters: {x: {value: 1}}\n": (1, "name is required"),
    "method: grid\nmetric: {name: l}\nparameters:\n  x: {distribution: normal}\n": (4, "use values"),
    HEAD + "  x: {value: 1}\nearly_terminate: {type: hyperband, eta: 3}\n": (
        5,
        "min_iter, or max_iter and s",
    ),
    HEAD + "  x: {value: 1}\nrun_cap: 0\n": (5, "positive integer"),
    "method: [\n": (2, "expected the node content"),
    HEAD + "  x: {value: 1}\n\trun_cap: 2\n": (5, "indented with spaces"),
    HEAD + "  x: {distribution: uniform, min: 0, max: .inf}\n": (4, "expected a finite number, got inf"),
    HEAD + "  x: {distribution: normal, mu: .nan}\n": (4, "expected a finite number, got nan"),
    HEAD + "  x: {min: -1.0e+308, max: 1.0e+308}\n": (4, "too far apart"),
    HEAD + "  x: {distribution: log_uniform, min: 1, max: 1000}\n": (4, "use log_uniform_values"),
    HEAD + "  x: {distribution: q_log_normal, sigma: 500}\n": (4, "reduce them"),
    HEAD + "  x: {distribution: [uniform], min: 0, max: 1}\n": (4, "did you mean 'uniform'"),
    HEAD + "  x: {values: [1, 2], probabilities: 0.5}\n": (4, "one number per value"),
    HEAD + "  x: {values: [2026-01-01]}\n": (4, "YAML reads 2026-01-01 as a date; add quotes"),
    HEAD + "  yes: {value: 1}\n": (3, "invalid parameter name True"),
    HEAD + "  x: {value: 1}\nname: 2026-01-01\n": (5, "add quotes"),
    HEAD + "  x: {value: 1}\ncommand: [python, 2026-01-01]\n": (5, "expected a list of words"),
    HEAD + "  x: {value: 1}\nearly_terminate: []\n": (5, "expected type: hyperband"),
    HEAD + "  x: {value: 1}\nearly_terminate: {type: hyperband, min_iter: .inf}\n": (5, "finite number"),
    HEAD + "  x: {value: 1}\nearly_terminate: {type: hyperband, min_iter: 1, strict: maybe}\n": (
        5,
        "expected true or false",
    ),
    HEAD.replace("loss", "loss, target: low") + "  x: {value: 1}\n": (2, "expected a number, got 'low'"),
    HEAD.replace("loss", "loss, target: 1e-3") + "  x: {value: 1}\n": (2, "write 0.001"),
    HEAD + "  a.b: {value: 1}\n  a:\n    parameters:\n      b: {value: 2}\n": (
        4,
        "duplicate parameter a.b",
    ),
    HEAD + "  x: &x {value: [*x]}\n": (0, "recursive YAML alias"),
    HEAD + f"  x: {{value: {'[' * 3000}{']' * 3000}}}\n": (0, "nesting too deep"),
    HEAD.replace("random", "grid") + "  x: {min: 1, max: 1_000_000_000_000}\n": (3, "the grid has 1e+12 points"),
    HEAD.replace("random", "grid") + "  x: {distribution: q_uniform, min: 0, max: 1.0e+300, q: 1.0e-300}\n": (
        3,
        "the grid has inf points",
    ),
    HEAD + "  x: {value: 1}\ncontroller: {type: local}\n": (5, "local controllers are not supported"),
    "method: grid\nmetric: {name: l}\nparameters:\n  a:\n    parameters:\n      b: {min: 0.0, max: 1.0}\n": (
        6,
        "use values",
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_an_invalid_file_is_reported_with_line_and_remedy(tmp_path: Path, text: str) -> None:
    line, words = WRONG[text]
    with pytest.raises(StackError, match=re.escape(words)) as raised:
        sweep(tmp_path, text)
    assert "\n" not in str(raised.value)
    if line:
        assert str(raised.value).startswith(f"sweep.yaml:{line}: ")


def test_hyperband_stops_trials_that_are_not_among_the_best_at_a_band(tmp_path: Path) -> None:
    text = HEAD + "  x: {value: 1}\nearly_terminate: {type: hyperband, min_iter: 2, eta: 2}\n"
    band = sweep(tmp_path, text).early
    assert band == Hyperband(band.bands, 2, True) if band else False
    assert band.bands[:3] == (2, 4, 8)
    others = [[9.0, 1.0], [9.0, 2.0], [9.0, 3.0], [9.0, 4.0]]
    assert [band.stops(history, others) for history in others] == [False, False, False, True]
    assert not band.stops([9.0], others)  # no trial stops before the first band


def test_hyperband_accepts_max_iter_and_s(tmp_path: Path) -> None:
    text = HEAD + "  x: {value: 1}\nearly_terminate: {type: hyperband, max_iter: 27, s: 2}\n"
    plan = sweep(tmp_path, text)
    assert plan.early
    assert plan.early.bands == (3, 9)


@pytest.mark.parametrize(
    ("keys", "bands"),
    [
        ("min_iter: 1, eta: 1000000000", (1, 10**9)),
        ("max_iter: 27, s: 1.0e+30", (1, 3, 9)),
        ("min_iter: 4, max_iter: 8, s: 1, eta: 2", (4,)),  # max_iter takes precedence, as in W&B
    ],
)
def test_the_number_of_bands_is_limited(tmp_path: Path, keys: str, bands: tuple[int, ...]) -> None:
    early = sweep(tmp_path, HEAD + f"  x: {{value: 1}}\nearly_terminate: {{type: hyperband, {keys}}}\n").early
    assert early
    assert early.bands == bands


def test_a_metric_name_can_contain_a_dot_or_be_nested() -> None:
    assert [metric_value({"a.b": 1}, "a.b"), metric_value({"a": {"b": 2}}, "a.b"), metric_value({"a": 3}, "a.b")] == [
        1,
        2,
        None,
    ]
