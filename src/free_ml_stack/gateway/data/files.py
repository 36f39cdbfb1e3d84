"""A file's bytes over HTTP: ranges, ETags and checksums (RFC 9110, RFC 9530)."""

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
from free_ml_stack.gateway.data.tree import RACY, Entry, StoreTree, version_of
from free_ml_stack.gateway.http import HTTPError, Request, whole_number
from free_ml_stack.storage.atomic import CHUNK, WholeFile
from free_ml_stack.storage.checksums import SUMS, digest_field, read_digest, read_wish, sum_of

SUMMED = 1 << 24  # bytes; the ETag of a file up to this size is its MD5, beyond that its version
HEAD = 1 << 16  # bytes that are looked at to tell text from binary
BRIEF = 1 << 18  # bytes that are summed up without leaving the event loop
KNOWN = 1 << 14  # checksums kept


class Sums:
    """The checksums of a tree's files, each kept until the file changes."""

    def __init__(self, tree: StoreTree) -> None:
        self.tree = tree
        self.known: dict[tuple[str, str, str], bytes] = {}

    async def get(self, path: str, file: BinaryIO, entry: Entry, kind: str) -> bytes:
        """The checksum of an open file; `SUMS` names the kinds."""
        key = (path, entry.version, kind)
        if key in self.known:
            return self.known[key]
        file.seek(0)
        if entry.size <= BRIEF and self.tree.near:
            total = sum_of(file, kind)
        else:
            total = await asyncio.to_thread(sum_of, file, kind)
        if time.time() - entry.modified > RACY:
            self.keep(path, entry.version, kind, total)
        return total

    def keep(self, path: str, version: str, kind: str, total: bytes) -> None:
        """Remember a checksum."""
        self.known[(path, version, kind)] = total
        while len(self.known) > KNOWN:
            del self.known[next(iter(self.known))]

    def ready(self, path: str, entry: Entry, kind: str) -> bool:
        """Whether a checksum is there without keeping the client waiting."""
        return (path, entry.version, kind) in self.known or (self.tree.near and entry.size <= SUMMED)

    async def etag(self, path: str, file: BinaryIO, entry: Entry) -> str:
        """The MD5 as Algorithmia gives it; the version where summing up would keep the client waiting."""
        if not self.ready(path, entry, "md5"):
            return f'"{entry.version}"'
        return f'"{(await self.get(path, file, entry, "md5")).hex()}"'


async def send_file(request: Request, sums: Sums, file: BinaryIO, entry: Entry) -> None:
    """Answer GET or HEAD with a file or the range of it that is asked for."""
    head = file.read(HEAD)
    headers = {
        "content-type": _content_type(head, entry.size),
        "etag": await sums.etag(request.path, file, entry),
        "last-modified": formatdate(entry.modified, usegmt=True),
        "accept-ranges": "bytes",
        "x-data-type": "file",
    }
    kind = read_wish(request.header(b"want-repr-digest"))
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
        await _send_bytes(request, file, begin, end)


async def _send_bytes(request: Request, file: BinaryIO, begin: int, end: int) -> None:
    """Send a part of a file. Raises ConnectionError where it has become shorter: cut off, never padded."""
    if request.direct and isinstance(file, io.FileIO):
        await request.direct.send(file, begin, end)
        await request.send({"type": "http.response.body", "body": b""})
        return
    file.seek(begin)
    while begin < end:
        chunk = file.read(min(CHUNK, end - begin))
        if not chunk:
            raise ConnectionError("a file became shorter while it was sent")
        begin += len(chunk)
        await request.send({"type": "http.response.body", "body": chunk, "more_body": begin < end})


async def receive_file(request: Request, file: WholeFile, sums: Sums) -> dict[str, str]:
    """Write the body to a file as it comes; returns the headers that tell its checksum, if one is wanted.

    Raises HTTPError when the bytes are not those whose checksum was sent along, and DisconnectedError.
    """
    sent, expected = read_digest(request.header(b"repr-digest"))
    kind = sent or read_wish(request.header(b"want-repr-digest"))
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
        raise HTTPError(400, f"{uri_of(request.path)}: the bytes do not have the {sent} that was sent with them")
    if size > SUMMED and sums.tree.near:  # a small file's is found quickly when it is asked for
        sums.keep(request.path, version_of(os.fstat(file.fileno())), kind, total.digest())
    return {"repr_digest": digest_field(kind, total.digest())}


async def _receive(request: Request, take: Callable[[bytes | memoryview], None]) -> None:
    length = request.header(b"content-length")
    if request.direct and length.isdecimal() and whole_number(length) > BRIEF:
        await request.direct.receive(whole_number(length), take)
        return
    async for piece in request.pieces():
        take(piece)


def _content_type(head: bytes, size: int) -> str:
    """Octets, with a charset where the bytes are UTF-8: without one the client's getString guesses."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=size == len(head))
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "application/octet-stream; charset=utf-8"


def _span(request: Request, etag: str, size: int) -> tuple[int, int, int]:
    """`(status, begin, end)` of the bytes to send. Raises HTTPError 416 for a range outside the file."""
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
