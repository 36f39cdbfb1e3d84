"""Files over HTTP: ranges, ETags and checksums (RFC 9110, RFC 9530)."""

import asyncio
import codecs
import io
import os
import re
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import BinaryIO

from free_ml_stack.gateway.data.paths import uri_of
from free_ml_stack.gateway.data.tree import RACY_SECONDS, Entry, StoreTree, version_of
from free_ml_stack.gateway.http import HTTPError, Request, whole_number
from free_ml_stack.storage.atomic import CHUNK, WholeFile
from free_ml_stack.storage.checksums import SUMS, checksum_of, digest_field, read_digest, read_preferred_digest

MD5_BYTES = 1 << 24  # bytes; the ETag of a file up to this size is its MD5, of a larger one its version
HEAD = 1 << 16  # bytes read to distinguish text from binary
INLINE_BYTES = 1 << 18  # bytes; files up to this size are handled in the event loop without a thread
CACHED = 1 << 14  # checksums cached


class Checksums:
    """Checksums of a tree's files, cached until the file changes."""

    def __init__(self, tree: StoreTree) -> None:
        self.tree = tree
        self.known: dict[tuple[str, str, str], bytes] = {}

    async def get(self, path: str, file: BinaryIO, entry: Entry, kind: str) -> bytes:
        """Return the checksum of an open file; `kind` is a key of `SUMS`."""
        key = (path, entry.version, kind)
        if key in self.known:
            return self.known[key]
        file.seek(0)
        if entry.size <= INLINE_BYTES and self.tree.is_local:
            total = checksum_of(file, kind)
        else:
            total = await asyncio.to_thread(checksum_of, file, kind)
        if time.time() - entry.modified > RACY_SECONDS:
            self.keep(path, entry.version, kind, total)
        return total

    def keep(self, path: str, version: str, kind: str, total: bytes) -> None:
        """Cache a checksum."""
        self.known[(path, version, kind)] = total
        while len(self.known) > CACHED:
            del self.known[next(iter(self.known))]

    def ready(self, path: str, entry: Entry, kind: str) -> bool:
        """Return whether a checksum is cached or fast to compute."""
        return (path, entry.version, kind) in self.known or (self.tree.is_local and entry.size <= MD5_BYTES)

    async def etag(self, path: str, file: BinaryIO, entry: Entry) -> str:
        """Return the MD5, as Algorithmia does, or the version if the MD5 is slow to compute."""
        if not self.ready(path, entry, "md5"):
            return f'"{entry.version}"'
        return f'"{(await self.get(path, file, entry, "md5")).hex()}"'


async def send_file(request: Request, sums: Checksums, file: BinaryIO, entry: Entry) -> None:
    """Answer GET or HEAD with a file or the requested range of it."""
    head = await sums.tree.run(file.read, HEAD)
    headers = {
        "content-type": _content_type(head, entry.size),
        "etag": await sums.etag(request.path, file, entry),
        "last-modified": formatdate(entry.modified, usegmt=True),
        "accept-ranges": "bytes",
        "x-data-type": "file",
    }
    kind = read_preferred_digest(request.header(b"want-repr-digest"))
    if kind and (request.method == "HEAD" or sums.ready(request.path, entry, kind)):
        headers["repr-digest"] = digest_field(kind, await sums.get(request.path, file, entry, kind))
    status, begin, end = _span(request, headers["etag"], entry.size)
    if status == 206:
        headers["content-range"] = f"bytes {begin}-{end - 1}/{entry.size}"
    if status != 304:
        headers["content-length"] = str(end - begin)
    await request.start(status, headers)
    if request.method == "HEAD" or end <= len(head):
        body = head[begin:end] if request.method == "GET" else b""
        await request.send({"type": "http.response.body", "body": body})
    else:
        await _send_bytes(request, sums.tree, file, begin, end)


async def _send_bytes(request: Request, tree: StoreTree, file: BinaryIO, begin: int, end: int) -> None:
    """Send a part of a file. Raises ConnectionError where it has become shorter: cut off, never padded."""
    if request.direct and isinstance(file, io.FileIO):
        await request.direct.send(file, begin, end)
        await request.send({"type": "http.response.body", "body": b""})
        return
    file.seek(begin)
    while begin < end:
        chunk = await tree.run(file.read, min(CHUNK, end - begin))
        if not chunk:
            raise ConnectionError("the file was truncated while it was sent")
        begin += len(chunk)
        await request.send({"type": "http.response.body", "body": chunk, "more_body": begin < end})


async def receive_file(request: Request, file: WholeFile, sums: Checksums) -> dict[str, str]:
    """Write the body to a file in chunks; return the headers with its checksum, if requested.

    Raises HTTPError on a checksum mismatch, and DisconnectedError.
    """
    sent, expected = read_digest(request.header(b"repr-digest"))
    kind = sent or read_preferred_digest(request.header(b"want-repr-digest"))
    total = SUMS[kind]() if kind else None
    size = 0

    def take(chunk: bytes | memoryview) -> None:
        nonlocal size
        size += len(chunk)
        file.write_through(chunk)
        if total:
            total.update(chunk)

    await _receive(request, take)
    if not total:
        return {}
    if sent and total.digest() != expected:
        raise HTTPError(400, f"{uri_of(request.path)}: checksum mismatch: the body has another {sent} than Repr-Digest")
    if size > MD5_BYTES and sums.tree.is_local:  # of small files it is computed on request
        sums.keep(request.path, version_of(os.fstat(file.fileno())), kind, total.digest())
    return {"repr_digest": digest_field(kind, total.digest())}


async def _receive(request: Request, take: Callable[[bytes | memoryview], None]) -> None:
    length = request.header(b"content-length")
    if request.direct and length.isdecimal() and whole_number(length) > INLINE_BYTES:
        await request.direct.receive(whole_number(length), take)
        return
    async for piece in request.stream():
        take(piece)


def _content_type(head: bytes, size: int) -> str:
    """Return octet-stream, with a charset if the bytes are UTF-8: without it the client's getString guesses."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=size == len(head))
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "application/octet-stream; charset=utf-8"


def _span(request: Request, etag: str, size: int) -> tuple[int, int, int]:
    """Return `(status, begin, end)` of the bytes to send. Raises HTTPError 416 for a range outside the file."""
    if etag in request.header(b"if-none-match").split(", "):
        return 304, 0, 0
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.header(b"range"), re.ASCII)
    if not match or not any(match.groups()) or request.header(b"if-range") not in ("", etag):
        return 200, 0, size
    first, last = match.groups()
    begin = whole_number(first) if first else max(0, size - whole_number(last))
    end = min(whole_number(last) + 1, size) if first and last else size
    if first and last and whole_number(last) < begin:
        return 200, 0, size
    if begin >= end:
        raise HTTPError(416, f"{uri_of(request.path)} has {size} bytes", content_range=f"bytes */{size}")
    return 206, begin, end
