"""The model as a service: the two functions that an Algorithmia algorithm has. Edit me. No LightGBM in here."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Model(NamedTuple):
    """A loaded model: its session, and its fields by name with the place of each category."""

    session: Any
    fields: dict[str, dict[str, Any]]


def load(model_dir: Path) -> Model:
    """Load `model.onnx` and what `config.json` says of it from a model folder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one row is too little work to share
    path, providers = str(model_dir / "model.onnx"), ["CPUExecutionProvider"]
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    fields = {field["name"]: {**field, "places": places(field)} for field in config["fields"]}
    return Model(onnxruntime.InferenceSession(path, options, providers=providers), fields)


def apply(input: Any, model: Model) -> dict[str, Any]:
    """Predict for one record: fields by name; some may be missing, and a category unknown. ValueError for no record."""
    return apply_batch([input], model)[0]


def apply_batch(inputs: list[Any], model: Model) -> list[dict[str, Any]]:
    """Predict for many records in one run of the model; the answers are those of `apply`."""
    rows = model.session.run(["variable"], {"features": features(inputs, model)})[0].tolist()
    return [{"prediction": value} for [value] in rows]


def watch(input: Any, answer: Any, model: Model) -> dict[str, Any]:
    """What monitoring compares with the training data: the fields and the answer; categories as text."""
    return {**given(input, model), "prediction": answer["prediction"]}


def given(record: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The fields of a record that are there: numbers, and categories as text."""
    there = {name: field for name, field in model.fields.items() if record.get(name) not in (None, "")}
    return {
        name: str(record[name]) if field["type"] == "category" else number(record[name], field)
        for name, field in there.items()
    }


def features(records: Sequence[Any], model: Model) -> NDArray[np.float32]:
    """Records as the model takes them (n, fields), NaN where missing or unknown. ValueError for what is no record."""
    for record in records:
        if not isinstance(record, Mapping) or not record.keys() & model.fields.keys():
            raise ValueError(f"expected a record with fields such as {', '.join(list(model.fields)[:5])}")
    rows = [[number(record.get(name), field) for name, field in model.fields.items()] for record in records]
    with np.errstate(over="ignore"):  # what float32 can't hold is infinite
        return np.array(rows).astype(np.float32)


def number(value: Any, field: Mapping[str, Any]) -> float:
    """A field's value as the model's number: a category as its place, a date as days since 1970. ValueError."""
    if value is None or value == "":
        return nan if field["usual"] is None else float(field["usual"])
    try:
        if field["type"] == "category":
            return float(field["places"].get(str(value), nan))
        return days(value) if field["type"] == "date" else float(value)
    except (TypeError, ValueError, OverflowError):
        kind = "a date such as 2026-01-31" if field["type"] == "date" else "a number"
        raise ValueError(f"{field['name']}: expected {kind}, got {value!r}") from None


def days(value: str) -> float:
    """An ISO date or time, of UTC unless it names a zone, as days since 1970; a time alone as its part of a day."""
    moment = datetime.fromisoformat(value if "-" in value else f"1970-01-01T{value}")
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) / timedelta(days=1)


def places(field: Mapping[str, Any]) -> dict[str, int]:
    """The place of each category."""
    return {str(value): place for place, value in enumerate(field["categories"] or ())}
