"""Checksums of files, and their HTTP headers (RFC 9530)."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import xxhash

from free_ml_stack.storage.atomic import CHUNK

SUMS: dict[str, Callable[[], Any]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha-256": hashlib.sha256,
    "xxh3-128": xxhash.xxh3_128,  # limited by memory bandwidth only; not in the RFC's registry
}


def checksum_of(file: BinaryIO, kind: str) -> bytes:
    """Return the checksum of the rest of an open file."""
    total = SUMS[kind]()
    while chunk := file.read(CHUNK):
        total.update(chunk)
    digest: bytes = total.digest()
    return digest


def git_blob_id(file: BinaryIO, size: int) -> str:
    """Return git's blob id of a file of `size` bytes, in hexadecimal."""
    total = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while chunk := file.read(CHUNK):
        total.update(chunk)
    return total.hexdigest()


def digest_field(kind: str, digest: bytes) -> str:
    """Return the value of `Repr-Digest`."""
    return f"{kind}=:{base64.b64encode(digest).decode()}:"


def read_digest(field: str) -> tuple[str, bytes]:
    """Return the first checksum of a known kind in a `Repr-Digest`, ("", b"") if there are none.

    Invalid base64 gives b"", which matches no content.
    """
    for kind, value in _members(field):
        if found := re.match(r":([\w+/]+)=*:", value):
            with suppress(ValueError):
                return kind, base64.b64decode(found[1] + "=" * (-len(found[1]) % 4))
            return kind, b""
    return "", b""


def read_preferred_digest(field: str) -> str:
    """Return the preferred known kind in a `Want-Repr-Digest`, "" if there are none."""
    wished = [(kind, re.match(r"(\d{1,2})\b", value)) for kind, value in _members(field)]  # RFC 9530: 0 to 10
    known = [(int(weight[1]), kind) for kind, weight in wished if weight and int(weight[1])]
    return max(known, default=(0, ""))[1]


def _members(field: str) -> Iterator[tuple[str, str]]:
    """Yield the known kinds in a dictionary (RFC 8941) with their values, in linear time."""
    for member in field.split(","):
        kind, _, value = member.strip().partition("=")
        if kind.lower() in SUMS:
            yield kind.lower(), value
