"""JSON that every reader takes: NaN and infinity, which JSON lacks and Python's `json` writes, become null."""

from typing import Any

import orjson

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def as_json(value: Any) -> bytes:
    """A value as an indented JSON document. Raises TypeError for what JSON can't hold."""
    return orjson.dumps(value, option=OPTIONS | orjson.OPT_INDENT_2)


def as_sent(value: Any) -> Any:
    """A value as it arrives where it is sent as JSON."""
    return orjson.loads(orjson.dumps(value, option=OPTIONS))
