"""Xet's storage: blocks of compressed chunks ("xorbs"), and files composed of chunks.

Formats are those of the published protocol (huggingface.co/docs/xet: xorb, shard, reconstruction of files), compared
with the requests of hf_xet. Repositories are downloaded by plain HTTP, as responses contain no Xet hash of their
files; those of buckets do.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

BOOKEND = b"\xff" * 32
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file: checksums of its parts follow; its SHA-256 follows
RECORD, HEADER = 48, 48


@dataclass(frozen=True)
class Part:
    """Chunks `start` to `end` of a block."""

    block: bytes
    start: int
    end: int


def chunks(xorb: bytes) -> Iterator[bytes]:
    """Yield the chunks of a block; each has a header: version, stored size, compression, size."""
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
    """Undo the grouping of bytes by their position in 4-byte words."""
    made, at = bytearray(len(body)), 0
    for place in range(4):
        count = (len(body) - place + 3) // 4
        made[place::4] = body[at : at + count]
        at += count
    return bytes(made)


def files(shard: bytes) -> Iterator[tuple[str, str, list[Part]]]:
    """Yield the files of a shard: Xet hash, SHA-256 if present, and parts."""
    at = HEADER
    while shard[at : at + 32] != BOOKEND:
        name = words(shard[at : at + 32])
        flags, count = struct.unpack_from("<II", shard, at + 32)
        at += RECORD
        parts = []
        for place in range(at, at + count * RECORD, RECORD):
            _, _, start, end = struct.unpack_from("<IIII", shard, place + 32)
            parts.append(Part(shard[place : place + 32], start, end))
        at += count * RECORD * (2 if flags & VERIFIED else 1)
        sha256 = words(shard[at : at + 32]) if flags & DESCRIBED else ""
        at += RECORD if flags & DESCRIBED else 0
        yield name, sha256, parts


def words(raw: bytes) -> str:
    """Format a hash as Xet does: four little-endian words in hexadecimal."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


class Blocks:
    """The uploaded blocks in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, list[Part]] = {}  # by Xet hash

    def keep(self, name: str, xorb: bytes) -> bool:
        """Store a block; return whether it is new."""
        new = not (self.folder / name).exists()
        (self.folder / name).write_bytes(xorb)
        return new

    def made(self, shard: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the Xet hashes and contents of a shard's files. Raises ValueError on a checksum mismatch."""
        for name, sha256, parts in files(shard):
            content = b"".join(b"".join(self.chunks(part)) for part in parts)
            if sha256 and hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"checksum mismatch: the parts do not match {sha256}")
            self.files[name] = parts
            yield name, content

    def chunks(self, part: Part) -> list[bytes]:
        """Return the chunks of a part of a file."""
        return list(chunks((self.folder / words(part.block)).read_bytes()))[part.start : part.end]

    def reconstruction(self, name: str, url: str) -> dict[str, Any]:
        """Return the chunks of a file with their URLs below `url`; {} for an unknown file."""
        terms, places = [], {}
        for part in self.files.get(name, []):
            block = words(part.block)
            size = sum(map(len, self.chunks(part)))
            between = {"start": part.start, "end": part.end}
            terms.append({"hash": block, "unpacked_length": size, "range": between})
            ends = offsets((self.folder / block).read_bytes())
            there = {"start": ends[part.start], "end": ends[part.end] - 1}
            places.setdefault(block, []).append({"range": between, "url": f"{url}/{block}", "url_range": there})
        return {"offset_into_first_range": 0, "terms": terms, "fetch_info": places} if terms else {}


def offsets(xorb: bytes) -> list[int]:
    """Return the offset of each chunk of a block, and the end of the last one."""
    found = [0]
    while found[-1] + 8 <= len(xorb) and xorb[found[-1]] == 0:
        found.append(found[-1] + 8 + int.from_bytes(xorb[found[-1] + 1 : found[-1] + 4], "little"))
    return found
