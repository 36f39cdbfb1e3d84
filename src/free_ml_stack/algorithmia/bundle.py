"""Bundles of small files in one HTTP body: a JSON line with names, sizes and checksums, then the contents."""

import json
from collections.abc import Iterable, Iterator

import xxhash

TYPE = "application/x-file-bundle"
SMALL = 1 << 16  # maximum size of a file in a bundle, in bytes
COUNT, SIZE = 256, 1 << 22  # maximum number of files and bytes in a bundle


def pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Create the body of a bundle."""
    chosen = list(files)
    head = [(name, len(content), xxhash.xxh3_64_hexdigest(content)) for name, content in chosen]
    return b"".join([json.dumps(head).encode(), b"\n", *(content for _, content in chosen)])


def unpack(body: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield the files of a bundle. Raises ValueError if the body is invalid, truncated or damaged."""
    head, newline, _ = body.partition(b"\n")
    rest = memoryview(body)[len(head) + 1 :]
    listed = json.loads(head)
    if not newline or sum(size for _, size, _ in listed) != len(rest):
        raise ValueError("truncated bundle")
    for name, size, checksum in listed:
        content, rest = rest[:size], rest[size:]
        if xxhash.xxh3_64_hexdigest(content) != checksum:
            raise ValueError(f"checksum mismatch for {name}")
        yield name, content
