"""Xet's storage as the client uploads to it: blocks of compressed chunks ("xorbs"), and files made of their chunks.

Layouts are those of the published protocol (huggingface.co/docs/xet: xorb, shard, reconstruction of files), and were
held against what hf_xet sends. Downloads are plain HTTP: no answer of this Hub names a Xet hash.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

BOOKEND = b"\xff" * 32
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file: sums of its parts follow; its SHA-256 follows
RECORD, HEADER = 48, 48


@dataclass(frozen=True)
class Part:
    """Chunks `start` to `end` of a block."""

    block: bytes
    start: int
    end: int


def chunks(xorb: bytes) -> Iterator[bytes]:
    """The chunks of a block, each behind a header: version, stored size, kind of compression, size."""
    lz4 = pa.Codec("lz4")
    at = 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        stored, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        size = int.from_bytes(xorb[at + 5 : at + 8], "little")
        body = xorb[at + 8 : at + 8 + stored]
        at += 8 + stored
        if scheme:
            body = lz4.decompress(body, decompressed_size=size, asbytes=True)
        yield ungrouped(body) if scheme == 2 else body


def ungrouped(body: bytes) -> bytes:
    """Bytes that were sorted by their place in words of four, in their own order again."""
    made, at = bytearray(len(body)), 0
    for place in range(4):
        count = (len(body) - place + 3) // 4
        made[place::4] = body[at : at + count]
        at += count
    return bytes(made)


def files(shard: bytes) -> Iterator[tuple[str, list[Part]]]:
    """The files that a shard describes: their SHA-256 and their parts."""
    at = HEADER
    while shard[at : at + 32] != BOOKEND:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        at += RECORD
        parts = []
        for place in range(at, at + count * RECORD, RECORD):
            _, _, start, end = struct.unpack_from("<IIII", shard, place + 32)
            parts.append(Part(shard[place : place + 32], start, end))
        at += count * RECORD * (2 if flags & VERIFIED else 1)
        sha256 = words(shard[at : at + 32]) if flags & DESCRIBED else ""
        at += RECORD if flags & DESCRIBED else 0
        yield sha256, parts


def words(raw: bytes) -> str:
    """Xet's way to write a hash: four little-endian words in hexadecimal."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


class Blocks:
    """The blocks that were sent, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, name: str, xorb: bytes) -> bool:
        """Keep a block; whether it is new."""
        new = not (self.folder / name).exists()
        (self.folder / name).write_bytes(xorb)
        return new

    def made(self, shard: bytes) -> Iterator[bytes]:
        """The contents of a shard's files. Raises ValueError for one that is not what its sum says."""
        for sha256, parts in files(shard):
            content = b"".join(
                b"".join(list(chunks((self.folder / words(part.block)).read_bytes()))[part.start : part.end])
                for part in parts
            )
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"the parts of {sha256} make another file")
            yield content
