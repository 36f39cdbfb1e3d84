"""Command-line flags, defaults and validation from the fields of a dataclass."""

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from free_ml_stack.errors import StackError

T = TypeVar("T")

BITS = 63  # of the integers of torch, pyarrow and SQL, without the sign
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


def flag(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field of a configuration: its default, its help text (with the unit), and its valid values.

    The field becomes a flag of `train`, a parameter of sweeps, and a key of `train --config`. Values are converted to
    the annotated type (int, float, str or bool) and checked against `choices`; a number must be at least `least`,
    greater than `above` and less than `below`.
    """
    from dataclasses import field  # imports `inspect`: a quarter of the time of --help

    limits = {"least": least, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add a flag for each field to `parser`, as `--batch-size` and, for sweeps, `--batch_size`."""
    from dataclasses import fields

    for field in fields(cls):
        names = dict.fromkeys((f"--{field.name.replace('_', '-')}", f"--{field.name}"))
        default = json.dumps(field.default) if isinstance(field.default, str) else field.default
        try:
            parser.add_argument(
                *names,
                default=argparse.SUPPRESS,
                metavar="|".join(field.metadata.get("choices", ())) or _type(cls, field.name).__name__.upper(),
                help=f"{field.metadata.get('help', '')} (default: {default})".strip().replace("%", "%%"),
            )
        except argparse.ArgumentError:
            message = f"{cls.__name__}.{field.name}: the command has a flag of this name; rename the field"
            raise StackError(message) from None


def read(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Create an instance of `cls` from its defaults and the layers, of which later ones take precedence.

    Text is converted to the field's type, so that files, environment and flags are equivalent. Raises StackError,
    naming the field, for an unknown name or an invalid value.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            values[name] = convert(cls, name, value)
    return cls(**values)


def convert(cls: type, name: str, value: Any) -> Any:
    """Convert `value` to the type of field `name` of `cls`. Raises StackError if it is invalid."""
    from dataclasses import fields

    known = {field.name: field for field in fields(cls)}
    if name not in known:
        raise StackError(unknown(name, list(known)))
    kind, choices = _type(cls, name), known[name].metadata.get("choices", ())
    try:
        result = _bool(value) if kind is bool else _convert_exactly(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise StackError(f"{name}: expected {kind.__name__}, got {value!r}") from None
    if choices and result not in choices:
        raise StackError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    _check_limits(name, result, known[name].metadata)
    return result


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Raise StackError for a number outside its limits."""
    least, above, below = (limits.get(kind) for kind in ("least", "above", "below"))
    if least is not None and value < least:
        raise StackError(f"{name}: must be at least {least:g}, got {value:g}")
    if above is not None and value <= above:
        raise StackError(f"{name}: must be more than {above:g}, got {value:g}")
    if below is not None and value >= below:
        raise StackError(f"{name}: must be less than {below:g}, got {value:g}")


def unknown(name: str, known: Iterable[str], kind: str = "setting") -> str:
    """Return the error message for an unknown name, with the closest known one in upper or lower case."""
    import difflib  # imported for errors only, to keep --help fast

    names = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(names.values())}"
    return f"unknown {kind} {name!r}; {hint}"


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises StackError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise StackError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise StackError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise StackError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _type(cls: type, name: str) -> type:
    kind: type = get_type_hints(cls)[name]
    if kind not in (int, float, str, bool):
        raise StackError(f"{cls.__name__}.{name}: expected the type int, float, str or bool, got {kind}")
    return kind


def _convert_exactly(kind: type, value: Any) -> Any:
    """Convert without loss: no booleans, no numbers as texts, no dropped fractions, no NaN, no integer beyond BITS."""
    if isinstance(value, bool | list | dict | None) or (kind is str and not isinstance(value, str)):
        raise TypeError
    result = kind(value)
    if isinstance(value, float) and (math.isnan(value) or (kind is int and value != result)):
        raise ValueError
    if isinstance(result, float) and math.isnan(result):
        raise ValueError
    if isinstance(result, int) and result.bit_length() > BITS:
        raise OverflowError
    return result


def _bool(value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE
