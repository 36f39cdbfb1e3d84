"""Parsing and validation of a sweep.yaml as defined by Weights & Biases.

Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys and the schema in W&B's `sweeps`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice, repeat, takewhile
from operator import mul, truediv
from pathlib import Path
from typing import Any

import yaml

from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import unknown
from free_ml_stack.sweeps.search_space import Hyperband, Parameter, Sweep

ROOT = (
    "program", "entity", "project", "name", "description", "method", "metric", "metrics", "parameters",
    "early_terminate", "command", "run_cap", "controller", "scheduler", "job", "image_uri", "apiVersion", "kind",
)  # fmt: skip
METRIC = ("name", "goal", "target", "impute", "impute_while_running")
HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
METHODS = ("grid", "random", "bayes")
NEEDS = {  # distribution: required keys, optional keys with their defaults
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (("min", "max"), {}),
    "uniform": (("min", "max"), {}),
    "q_uniform": (("min", "max"), {"q": 1.0}),
    "log_uniform": (("min", "max"), {}),
    "log_uniform_values": (("min", "max"), {}),
    "q_log_uniform": (("min", "max"), {"q": 1.0}),
    "q_log_uniform_values": (("min", "max"), {"q": 1.0}),
    "inv_log_uniform": (("min", "max"), {}),
    "inv_log_uniform_values": (("min", "max"), {}),
    "normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1.0}),
    "log_normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_log_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1.0}),
    "beta": ((), {"a": 1.0, "b": 1.0}),
    "q_beta": ((), {"a": 1.0, "b": 1.0, "q": 1.0}),
}
GRID = ("constant", "categorical", "int_uniform", "q_uniform")
TEXTS = ("program", "entity", "project", "name", "description")
POWER = 700  # e**POWER is close to the largest float
LARGEST = 100_000  # maximum number of points of a grid
SPREAD = 6  # standard deviations that contain practically all samples of a normal distribution
BANDS, LONGEST = 100, 10**12  # maximum number of bands; maximum number of values of a trial


def read_sweep(path: Path) -> Sweep:
    """Read and validate a sweep.yaml. Raises StackError with the line, the error and the remedy."""
    try:
        return parse_sweep(path.read_text(encoding="utf-8-sig"), path.name)
    except FileNotFoundError:
        raise StackError(f"{path}: no such file") from None
    except OSError as error:
        raise StackError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StackError(f"{path}: {error}; save it as UTF-8 text") from None


def parse_sweep(text: str, name: str) -> Sweep:
    """Parse the text of the sweep file `name`. Raises StackError as `read_sweep` does."""
    try:
        content, node = yaml.safe_load(text), yaml.compose(text)
        json.dumps(content, default=str, skipkeys=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise StackError(f"{place}: {error.problem}; expected YAML, indented with spaces") from None
    except yaml.YAMLError as error:
        raise StackError(f"{name}: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError):
        raise StackError(f"{name}: recursive YAML alias or nesting too deep") from None
    try:
        return _sweep(content)
    except EntryError as fault:
        raise StackError(f"{name}:{_line(node, fault.path)}: {fault}") from None


class EntryError(Exception):
    """An invalid entry of the file, with its path."""

    def __init__(self, path: tuple[str, ...], text: str) -> None:
        super().__init__(f"{'.'.join(path)}: {text}" if path else text)
        self.path = path


def _sweep(content: Any) -> Sweep:
    if not isinstance(content, dict):
        raise EntryError((), "expected a mapping with keys such as method and parameters")
    _known(content, ROOT, ())
    for key in TEXTS:
        if not isinstance(content.get(key) or "", str):
            raise EntryError((key,), f"expected text, got {content[key]}; add quotes")
    method = content.get("method")
    if method not in METHODS:
        raise EntryError(("method",), f"expected one of {', '.join(METHODS)}, got {method!r}")
    metric = content.get("metric") or {}
    _known(metric, METRIC, ("metric",))
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise EntryError(("metric", "goal"), f"expected minimize or maximize, got {goal!r}")
    if not isinstance(metric.get("name"), str) or not metric["name"]:
        raise EntryError(("metric",), "name is required: the metric to optimize, such as validation_loss")
    if "target" in metric:
        _number(metric["target"], ("metric", "target"))
    parameters = tuple(_parameters(content.get("parameters"), ("parameters",)))
    names = [parameter.name for parameter in parameters]
    for parameter in parameters:
        if names.count(parameter.name) > 1:
            raise EntryError(_place(parameter), f"duplicate parameter {parameter.name}; rename one")
        if method == "grid" and parameter.distribution not in GRID:
            raise EntryError(_place(parameter), f"{parameter.distribution} is not supported in a grid; use values")
    if method == "grid" and (points := math.prod(parameter.size() for parameter in parameters)) > LARGEST:
        raise EntryError(("parameters",), f"the grid has {points:.3g} points; use fewer values or method: random")
    if content.get("controller"):  # W&B would wait for a local controller process
        raise EntryError(("controller",), "local controllers are not supported; remove this key")
    cap = content.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and not isinstance(cap, bool) and cap > 0):
        raise EntryError(("run_cap",), f"expected a positive integer, got {cap!r}")
    early = content.get("early_terminate")
    return Sweep(
        method,
        metric["name"],
        goal,
        parameters,
        None if early is None else _hyperband(early),
        cap,
        metric.get("target"),
        _command(content.get("command")),
        str(content.get("program") or ""),
        content,
    )


def _place(parameter: Parameter) -> tuple[str, ...]:
    return tuple(word for name in parameter.path for word in ("parameters", name))


def _command(words: Any) -> tuple[str, ...]:
    if words is None:
        return ()
    if not isinstance(words, list) or not words or not all(isinstance(word, str | int | float) for word in words):
        raise EntryError(("command",), "expected a list of words such as ${interpreter} and ${args_json_file}")
    return tuple(str(word) for word in words)


def _parameters(table: Any, path: tuple[str, ...]) -> Iterator[Parameter]:
    if not isinstance(table, dict) or not table:
        raise EntryError(path, "expected a mapping of parameters")
    for name, spec in table.items():
        here = (*path, str(name))
        if not isinstance(name, str) or not NAME.fullmatch(name):
            rule = "expected letters, digits, _ . and -, starting with a letter or _"
            raise EntryError(here, f"invalid parameter name {name!r}: {rule}")
        if not isinstance(spec, dict):
            raise EntryError(here, f"expected a mapping such as {{value: {spec!r}}}")
        if "parameters" in spec:
            _known(spec, ["parameters"], here)
            for parameter in _parameters(spec["parameters"], (*here, "parameters")):
                yield Parameter((str(name), *parameter.path), parameter.distribution, parameter.numbers)
        else:
            yield _parameter(str(name), spec, here)


def _parameter(name: str, spec: Mapping[str, Any], path: tuple[str, ...]) -> Parameter:
    kind = spec.get("distribution") or _inferred(spec, path)
    if kind == "categorical" and "probabilities" in spec:
        kind = "categorical_w_probabilities"
    if not isinstance(kind, str) or kind not in NEEDS:
        raise EntryError((*path, "distribution"), unknown(str(kind), list(NEEDS)))
    needed, optional = NEEDS[kind]
    _known(spec, ["distribution", *needed, *optional], path)
    for key in needed:
        if key not in spec:
            raise EntryError(path, f"{kind} requires {key}")
    numbers = {**optional, **{key: spec[key] for key in spec if key != "distribution"}}
    _check(kind, numbers, path)
    return Parameter((name,), kind, numbers)


def _inferred(spec: Mapping[str, Any], path: tuple[str, ...]) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    if "min" in spec and "max" in spec:
        kinds = {type(_number(spec[key], (*path, key))) for key in ("min", "max")}
        if len(kinds) > 1:
            raise EntryError(path, "min and max must both be integers or both be floats")
        return "int_uniform" if kinds == {int} else "uniform"
    raise EntryError(path, "expected value, values, min and max, or distribution")


def _check(kind: str, numbers: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Check what a schema cannot express: order, sums and signs."""
    if "values" in numbers:
        if not isinstance(numbers["values"], list) or not numbers["values"]:
            raise EntryError((*path, "values"), "expected a list of at least one value")
        for value in numbers["values"]:
            _value(value, (*path, "values"))
    _value(numbers.get("value"), (*path, "value"))
    for key in set(numbers) & {"min", "max", "mu", "sigma", "q", "a", "b"}:
        _number(numbers[key], (*path, key))
    if "min" in numbers and not numbers["min"] < numbers["max"]:
        raise EntryError((*path, "min"), f"min ({numbers['min']}) must be less than max ({numbers['max']})")
    if kind == "int_uniform" and not all(isinstance(numbers[key], int) for key in ("min", "max")):
        raise EntryError(path, "int_uniform requires integers")
    if kind.endswith("_values") and numbers["min"] <= 0:
        raise EntryError((*path, "min"), f"must be above 0 on a logarithmic scale, got {numbers['min']}")
    for key in set(numbers) & {"q", "a", "b"}:
        if numbers[key] <= 0:
            raise EntryError((*path, key), f"must be above 0, got {numbers[key]}")
    if numbers.get("sigma", 0) < 0:
        raise EntryError((*path, "sigma"), f"must not be negative, got {numbers['sigma']}")
    _bounded(kind, numbers, path)
    if kind == "categorical_w_probabilities":
        if not isinstance(numbers["probabilities"], list):
            raise EntryError((*path, "probabilities"), "expected a list with one number per value")
        shares = [_number(share, (*path, "probabilities")) for share in numbers["probabilities"]]
        if len(shares) != len(numbers["values"]):
            raise EntryError((*path, "probabilities"), f"got {len(shares)} for {len(numbers['values'])} values")
        if any(share < 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise EntryError((*path, "probabilities"), f"must be non-negative and sum to 1, got sum {sum(shares):g}")


def _bounded(kind: str, numbers: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Raise EntryError for parameters that overflow a float."""
    if kind.removeprefix("q_").removeprefix("inv_") == "log_uniform":
        if max(abs(numbers["min"]), abs(numbers["max"])) > POWER:
            remedy = f"use {kind}_values to give the limits themselves"
            raise EntryError(path, f"min and max are exponents of e and must be within ±{POWER}; {remedy}")
    elif kind.endswith("log_normal") and abs(numbers["mu"]) + SPREAD * numbers["sigma"] > POWER:
        raise EntryError(path, f"mu and sigma are exponents of e and must be within ±{POWER}; reduce them")
    elif "min" in numbers and not math.isfinite(numbers["max"] - numbers["min"]):
        raise EntryError(path, "min and max are too far apart")


def _hyperband(table: Any) -> Hyperband:
    path = ("early_terminate",)
    if not isinstance(table, dict) or table.get("type") != "hyperband":
        raise EntryError(path, "expected type: hyperband")
    _known(table, HYPERBAND, path)
    eta = _number(table.get("eta", 3), (*path, "eta"))
    if eta <= 1:
        raise EntryError((*path, "eta"), f"must be above 1, got {eta}")
    strict = table.get("strict", True)
    if not isinstance(strict, bool):
        raise EntryError((*path, "strict"), f"expected true or false, got {strict!r}")
    if "max_iter" in table and "s" in table:  # W&B gives these precedence over min_iter
        last, count = (_number(table[key], (*path, key)) for key in ("max_iter", "s"))
        down = accumulate(repeat(eta, int(min(count, BANDS))), truediv, initial=last)
        bands = sorted({int(band) for band in takewhile(lambda band: band >= 1, islice(down, 1, None))})
        if not bands:
            raise EntryError(path, "no bands: increase max_iter or s, or decrease eta")
        return Hyperband(tuple(bands), eta, strict)
    if "min_iter" not in table:
        raise EntryError(path, "expected min_iter, or max_iter and s")
    first = _number(table["min_iter"], (*path, "min_iter"))
    if first < 1:
        raise EntryError((*path, "min_iter"), f"must be at least 1, got {first}")
    up = accumulate(repeat(eta, BANDS), mul, initial=first)
    return Hyperband(tuple(map(int, takewhile(lambda band: band < LONGEST, up))), eta, strict)


def _number(value: Any, path: tuple[str, ...]) -> float:
    _refuse_text_number(value, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EntryError(path, f"expected a number, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise EntryError(path, f"expected a finite number, got {value}")
    return value


def _value(value: Any, path: tuple[str, ...]) -> None:
    """Raise EntryError for a value that YAML misreads or that JSON cannot represent."""
    _refuse_text_number(value, path)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise EntryError(path, f"YAML reads {value} as a {type(value).__name__}; add quotes") from None


def _refuse_text_number(value: Any, path: tuple[str, ...]) -> None:
    """Raise EntryError for a number such as 1e-3, which YAML reads as text."""
    if isinstance(value, str) and "e" in value.lower():
        try:
            number = float(value)
        except ValueError:
            return
        raise EntryError(path, f"YAML reads {value} as text; write {number!r}, or with a decimal point, 1.0e-3")


def _known(table: Any, names: Sequence[str], path: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise EntryError(path, f"expected a mapping, got {table!r}")
    for name in table:
        if name not in names:
            raise EntryError((*path, str(name)), unknown(str(name), list(names)))


def _line(node: Any, path: tuple[str, ...]) -> int:
    """Return the line of a path in the file, or of its nearest existing parent."""
    line = 1
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == name), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
