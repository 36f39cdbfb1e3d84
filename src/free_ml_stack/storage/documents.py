"""Strict JSON: NaN and infinity, which Python's `json` would write, become null."""

from typing import Any

import orjson

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def as_json(value: Any) -> bytes:
    """Return a value as an indented JSON document. Raises TypeError if it is not JSON-serializable."""
    return orjson.dumps(value, option=OPTIONS | orjson.OPT_INDENT_2)


def json_round_trip(value: Any) -> Any:
    """Return a value after a round trip through JSON."""
    return orjson.loads(orjson.dumps(value, option=OPTIONS))
