"""Many small files in one body: a line of JSON with their names, sizes and checksums, then their bytes."""

import json
from collections.abc import Iterable, Iterator

import xxhash

TYPE = "application/x-file-bundle"
SMALL = 1 << 16  # bytes of a file that goes into a bundle
COUNT, SIZE = 256, 1 << 22  # files and bytes in one bundle at most


def pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The body that holds these files."""
    chosen = list(files)
    head = [(name, len(content), xxhash.xxh3_64_hexdigest(content)) for name, content in chosen]
    return b"".join([json.dumps(head).encode(), b"\n", *(content for _, content in chosen)])


def unpack(body: bytes) -> Iterator[tuple[str, memoryview]]:
    """The files in a body, one by one. Raises ValueError for what is not a bundle, is cut or has changed."""
    head, newline, _ = body.partition(b"\n")
    rest = memoryview(body)[len(head) + 1 :]
    listed = json.loads(head)
    if not newline or sum(size for _, size, _ in listed) != len(rest):
        raise ValueError("the bundle is cut off")
    for name, size, checksum in listed:
        content, rest = rest[:size], rest[size:]
        if xxhash.xxh3_64_hexdigest(content) != checksum:
            raise ValueError(f"{name} arrived changed")
        yield name, content
