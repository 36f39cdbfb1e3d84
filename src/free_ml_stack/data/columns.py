"""Columns of a data set: the representation of each kind of value in Arrow, in the manifest, and as an array.

A kind is number (integers, floats, booleans, durations in microseconds), tensor (numbers of one shape), category,
text, bytes or date (also a time of day, on 1970-01-01). Parquet files store the value of a category; an array stores
its index in the manifest's sorted `categories`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from free_ml_stack.console import join_names
from free_ml_stack.errors import StackError

Facts = Mapping[str, Any]
MAX_CATEGORIES = 1000  # of a column that is not the target; rarer values count as missing
MAX_NUMBER = float(np.finfo(np.float32).max)  # of a target
LEVELS = 100  # minimum number of values that float32 has between the ends of a column
MICROSECONDS = 86_400_000_000  # in a day
# Kinds that are not numbers: the type they are stored in, and the types of a source that are converted to it.
STORED = {
    "text": (pa.string(), (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)),
    "bytes": (
        pa.binary(),
        (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view),
    ),
    "date": (pa.timestamp("us"), (pa.types.is_timestamp, pa.types.is_date)),
}
VARIABLE = ("text", "bytes")  # kinds without a fixed size
ONE_DIMENSION = 1
# A number as text that is no number to a parser: with thousands separators, a decimal comma, a unit.
FORMATTED = re.compile(
    r"[-+]?[$€£¥]?\s?(\d+([.,]\d+)?|\d{1,3}([,.'\s]\d{3})+([.,]\d+)?)(\s?[%$€£¥]|\s?[^\W\d]{2,3}|\s[^\W\d]{1,9})?"
)
# A date as text in another order or with other separators than in ISO 8601, perhaps with a time.
DATED = re.compile(
    r"(\d{1,2}([./-])\d{1,2}\2\d{4}|\d{4}([./-])\d{1,2}\3\d{1,2}"
    r"|[^\W\d]{3,9}\.? \d{1,2},? \d{4}|\d{1,2}\.? [^\W\d]{3,9}\.? \d{4})"
    r"(,? \d{1,2}(:\d\d){1,2}( ?[AP]M)?)?"
)
PLAIN = "write numbers as 1234.5, without thousands separators, decimal commas and units"
SHOWN = 40  # characters of a text in a message
SEVERAL = 10  # values that are formatted numbers or dates, before they count as a mistake
WRONG = re.compile(r"string: ('.*') as a scalar", re.DOTALL)  # the value in an error of Arrow


class ColumnError(StackError):
    """A column of a type that no kind represents."""


def from_array(values: Any) -> pa.Array:
    """Convert an array (rows, …), a list, or a column of Arrow or pandas to an Arrow array."""
    if isinstance(values, np.ndarray) and values.ndim > ONE_DIMENSION:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)


def to_storage_type(column: pa.Array, name: str, names: Sequence[str] = ()) -> pa.Array:
    """Convert a column of a source to the type it is stored in; `names` are the class names of an integer column.

    Raises ColumnError for a type that no kind represents.
    """
    kind = column.type
    if names:
        return _class_names(column, name, names)
    if isinstance(column, pa.ExtensionArray):
        return column
    if pa.types.is_dictionary(kind):
        return to_storage_type(column.dictionary_decode(), name)
    if pa.types.is_struct(kind) and {field.name for field in kind} >= {"bytes"}:  # the Hub's Image and Audio features
        return to_storage_type(column.field("bytes"), name)
    if pa.types.is_decimal(kind) or pa.types.is_null(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    if pa.types.is_time(kind):  # on 1970-01-01
        return column.cast(pa.time64("us"), safe=False).cast(pa.int64()).cast(pa.timestamp("us"))
    if pa.types.is_duration(kind):
        return column.cast(pa.duration("us"), safe=False).cast(pa.int64())
    if _is_list(kind):
        return from_array(_dense(column, name))
    if (word := kind_of(kind)) in STORED:
        return column.cast(STORED[word][0], safe=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column
    raise ColumnError(
        f"{name} has type {kind}; expected numbers, lists of numbers, text, bytes or dates; convert or remove it"
    )


def _class_names(column: pa.Array, name: str, names: Sequence[str]) -> pa.Array:
    """Replace class numbers by class names; -1 is missing, as in the Hub's test splits without labels."""
    numbers = pc.fill_null(column.cast(pa.int64()), -1)
    if (most := pc.max(numbers).as_py() or 0) >= len(names):
        raise StackError(f"{name} has class {most}, but only {len(names)} class names")
    known = pa.array(range(len(names)), pa.int64())
    return pc.take(pa.array(names, pa.string()), pc.index_in(numbers, known))


def kind_of(kind: pa.DataType) -> str:
    """Return the kind of a column of a storage type."""
    if isinstance(kind, pa.BaseExtensionType):
        return "tensor"
    return next((word for word, (_, types) in STORED.items() if any(is_type(kind) for is_type in types)), "number")


def cast(column: pa.Array, kind: str, name: str) -> pa.Array:
    """Convert a column of a storage type to the kind that the project expects. Raises StackError if it cannot."""
    found = kind_of(column.type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8() if kind == "number" else pa.string())  # "false" and "true"
    if found == kind or (kind == "category" and found in ("text", "number")):
        return column
    if (kind, found) == ("category", "date"):
        return pc.replace_substring_regex(column.cast(pa.string()), r"( 00:00:00)?\.0+$", "")
    if (kind, found) == ("text", "number"):
        return column.cast(pa.string())
    if kind == "number" and found == "text":
        try:
            return column.cast(pa.float64())
        except pa.ArrowInvalid as error:
            value = WRONG.search(str(error))
            reason = f"got {value[1]}" if value else str(error)
            formatted = value and FORMATTED.fullmatch(value[1].strip("'"))
            remedy = PLAIN if formatted else "correct or remove these rows"
            raise StackError(f"{name} must hold numbers, {reason}; {remedy}") from None
    raise StackError(f"{name} has kind {found}, expected {kind}; convert it, or choose another column")


class Description:
    """The manifest entry of a column, computed while its rows are written."""

    def __init__(self, kind: str, target: bool) -> None:
        self.kind, self.target = kind, target
        self.type: pa.DataType | None = None
        self.missing = 0
        self.least, self.most = float("inf"), float("-inf")
        self.counts: dict[str, Counter[Any]] = {}

    def add(self, column: pa.Array, split: str) -> None:
        """Add the values of a batch of rows of a split."""
        self.type = column.type
        self.missing += column.null_count
        if self.kind in ("number", "tensor", "date"):
            flat = column.storage.flatten() if isinstance(column, pa.ExtensionArray) else column
            flat = flat.cast(pa.int64()) if self.kind == "date" else flat  # microseconds since 1970
            ends = pc.min_max(flat).as_py()
            if ends["min"] is not None:
                self.least, self.most = min(self.least, ends["min"]), max(self.most, ends["max"])
        if self.kind == "category":
            counted = pc.value_counts(column.drop_null())
            values, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
            self.counts.setdefault(split, Counter()).update(dict(zip(values, counts, strict=True)))

    def mistake(self) -> str:
        """Describe the mistake if float32 rounds the values, or most categories are numbers or dates; "" without one.

        Models compute in float32; dates are days since 1970.
        """
        unit = MICROSECONDS if self.kind == "date" else 1
        least, most = self.least / unit, self.most / unit
        if 0 < most - least < LEVELS * np.spacing(np.float32(min(max(abs(least), abs(most)), MAX_NUMBER))):
            rounded = f"values from {self.least} to {self.most}", "subtract a constant from the column"
            if self.kind == "date":
                rounded = f"dates within {(most - least) * 24:.3g} hours", "add a column of seconds"
            return f"has {rounded[0]}, which float32 rounds; {rounded[1]}"
        values = sorted({value for counts in self.counts.values() for value in counts}, key=str)
        texts = [value for value in values if isinstance(value, str)]
        others = [text for text in texts if not _is_plain(text)]
        enough = max(SEVERAL, len(values) / 2)
        for form, remedy in ((FORMATTED, PLAIN), (DATED, "write dates as 2020-04-22")):
            found = [text for text in others if form.fullmatch(text)]
            if len(found) > enough:
                return f"has texts such as {found[0]}, used as categories; {remedy}"
        if others and not self.target and len(texts) - len(others) > enough:
            odd = shorten(others[0], SHOWN, placeholder="…")
            return f"has texts such as {odd!r} besides numbers or dates, used as categories; leave missing values empty"
        return ""

    def facts(self) -> dict[str, Any]:
        """Return the entry for the manifest."""
        missing = {"missing": self.missing} if self.missing else {}
        if self.kind == "category":
            total: Counter[Any] = sum(self.counts.values(), Counter())
            kept = total if self.target else dict(total.most_common(MAX_CATEGORIES))
            return {"type": "category", "categories": sorted(kept), **missing}
        if self.kind in ("number", "tensor"):
            assert self.type is not None
            tensor = isinstance(self.type, pa.FixedShapeTensorType)
            plain = str(self.type.value_type if tensor else self.type).replace("double", "float64")
            shape = list(self.type.shape) if tensor else []
            ends = {"least": self.least, "most": self.most} if self.most >= self.least else {}
            return {"type": {"float": "float32"}.get(plain, plain), "shape": shape, **ends, **missing}
        return {"type": self.kind, **missing}


def to_array(column: pa.Array, facts: Facts) -> NDArray[Any]:
    """Convert a column of fixed size to an array (rows, …).

    A category becomes its index among the sorted categories, or -1 if it is missing or unknown. A column of numbers
    with missing values becomes floats with NaN. A date becomes datetime64 in microseconds, or NaT.
    """
    if facts["type"] == "category":
        known = pa.array(facts["categories"])
        wanted = column if known.type == column.type or not len(known) else column.cast(known.type)
        places = pc.index_in(wanted, known) if len(known) else pa.nulls(len(column), pa.int32())
        return np.asarray(pc.fill_null(places, -1)).astype(np.int64)
    if isinstance(column, pa.FixedShapeTensorArray):
        array: NDArray[Any] = column.to_numpy_ndarray()
        return array
    if facts.get("missing") and pa.types.is_integer(column.type):
        column = column.cast(pa.float64())
    found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found


def check_target(name: str, described: Description, rows: Mapping[str, int], warn: Callable[[str], None]) -> None:
    """Raise StackError for a target of one value, beyond float32 or of too many classes; warn about rare classes."""
    if described.kind != "category":
        _check_range(name, described.least, described.most)
        return
    classes = described.facts()["categories"]
    if len(classes) == 1:
        raise StackError(
            f"column {name} has the value {classes[0]} in all rows, expected at least two classes; provide rows of "
            "another class, or choose another column with --target COLUMN"
        )
    if len(classes) * 2 > sum(rows.values()):
        raise StackError(
            f"column {name} has {len(classes)} distinct values in {sum(rows.values())} rows, too many for a target "
            "with classes; choose another column with --target COLUMN"
        )
    parts = max(100, 2 * len(classes))  # with many classes, each of them is below 1 in 100
    for split, count in rows.items():
        counts = described.counts.get(split, Counter())
        if absent := [str(value) for value in classes if not counts[value]]:
            warn(f"{split} has no row of {join_names(absent)}")
        if rare := [str(value) for value in classes if 0 < counts[value] < count / parts]:
            warn(f"fewer than 1 in {parts} rows of {split} are {join_names(rare)}")


def _check_range(name: str, least: float, most: float) -> None:
    """Raise StackError for one number, or any beyond float32, in which models compute."""
    if least == most:
        raise StackError(
            f"column {name} has the value {least:g} in all rows; provide rows with other values, or choose another "
            "column with --target COLUMN"
        )
    extreme = max(least, most, key=abs)
    if least <= most and abs(extreme) > MAX_NUMBER:
        raise StackError(
            f"column {name} has the value {extreme:g}, expected at most {MAX_NUMBER:.3g} (float32); "
            "rescale the column, or correct or remove these rows"
        )


def _dense(column: pa.Array, name: str) -> NDArray[Any]:
    """Convert nested lists of numbers, of equal lengths at each depth, to an array."""
    if column.null_count:
        raise ColumnError(f"{name} has missing values among its lists")
    if not _is_list(column.type):
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise ColumnError(f"{name} has lists of {column.type}; expected lists of numbers")
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return values
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if lengths == [0]:
        raise ColumnError(f"{name} has empty lists; convert or remove it")
    if len(lengths) != 1:
        raise ColumnError(
            f"{name} has lists of {len(lengths)} different lengths; expected equal lengths; convert or remove it"
        )
    inner = _dense(column.flatten(), name)
    return inner.reshape(len(column), lengths[0], *inner.shape[1:])


def _is_plain(text: str) -> bool:
    """Return whether a text is a number or an ISO date."""
    for read in (float, datetime.fromisoformat):
        with suppress(ValueError):
            read(text)
            return True
    return False


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
