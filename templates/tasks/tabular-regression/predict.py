"""The model as a service: `load` and `apply` of an Algorithmia algorithm. Edit me. Must not import LightGBM."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TRUTH = {"true": 1.0, "false": 0.0}  # texts that count as numbers
EXPECTED = {"category": "a text", "date": "a date such as 2026-01-31", "uint8": "true or false, or a number"}


class Model(NamedTuple):
    """A loaded model: session, and fields by name with the index of each category."""

    session: Any
    fields: dict[str, dict[str, Any]]


def load(model_dir: Path) -> Model:
    """Load `model.onnx` and its metadata `config.json` from a model folder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one row is too small for several threads
    path, providers = str(model_dir / "model.onnx"), ["CPUExecutionProvider"]
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    fields = {field["name"]: {**field, "places": category_indices(field)} for field in config["fields"]}
    return Model(onnxruntime.InferenceSession(path, options, providers=providers), fields)


def apply(input: Any, model: Model) -> dict[str, Any]:
    """Predict for one record: fields by name, of which some can be missing or unknown. Raises ValueError."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Model) -> list[dict[str, Any]]:
    """Predict for several records in one run of the model, with the same results as `apply`."""
    rows = model.session.run(["variable"], {"features": features(inputs, model)})[0].tolist()
    return [{"prediction": value} for [value] in rows]


def watch(input: Any, answer: Any, model: Model) -> dict[str, Any]:
    """Return the quantities for monitoring: the result, shown first, and the fields; categories as text."""
    result = {"prediction": answer["prediction"]}
    return {**result, **present_fields(input, model), **result}  # the result replaces a field of the same name


def present_fields(record: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return the fields of a record that are not missing: numbers, and categories as text."""
    there = {name: field for name, field in model.fields.items() if record.get(name) not in (None, "")}
    return {
        name: category(record[name], field) if field["type"] == "category" else number(record[name], field)
        for name, field in there.items()
    }


def features(records: Sequence[Any], model: Model) -> NDArray[np.float32]:
    """Convert records to features (n, fields), NaN for missing or unknown values. Raises ValueError."""
    for record in records:
        if not isinstance(record, Mapping) or not record.keys() & model.fields.keys():
            raise ValueError(f"expected a record with fields such as {', '.join(list(model.fields)[:5])}")
    rows = [[number(record.get(name), field) for name, field in model.fields.items()] for record in records]
    with np.errstate(over="ignore"):  # float32 overflow gives infinity
        return np.array(rows).astype(np.float32)


def number(value: Any, field: Mapping[str, Any]) -> float:
    """Convert a value: a category to its index, a date to days since 1970. Raises ValueError."""
    if value is None or value == "":
        return nan if field["usual"] is None else float(field["usual"])
    try:
        if field["type"] == "category":
            return float(field["places"].get(category(value, field), nan))
        return days(value) if field["type"] == "date" else float(TRUTH.get(str(value).lower(), value))
    except (TypeError, ValueError, OverflowError):
        expected = EXPECTED.get(field["type"], "a number")
        raise ValueError(f"{field['name']}: expected {expected}, got {value!r}") from None


def category(value: Any, field: Mapping[str, Any]) -> str:
    """Return a category as text; true and 2.0 count as "true" and "2" where they are categories. Raises TypeError."""
    if isinstance(value, list | dict):
        raise TypeError
    text = str(value)
    other = text.lower() if isinstance(value, bool) else text.removesuffix(".0")
    return other if text not in field["places"] and other in field["places"] else text


def days(value: str) -> float:
    """Convert an ISO date or time, by default in UTC, to days since 1970; a time alone to the fraction of a day."""
    moment = datetime.fromisoformat(value if "-" in value else f"1970-01-01T{value}")
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) / timedelta(days=1)


def category_indices(field: Mapping[str, Any]) -> dict[str, int]:
    """Return the index of each category."""
    return {str(value): place for place, value in enumerate(field["categories"] or ())}
