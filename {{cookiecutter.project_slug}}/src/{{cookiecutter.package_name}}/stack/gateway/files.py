"""A file's bytes over HTTP: ranges, ETags and checksums (RFC 9110, RFC 9530)."""

import asyncio
import base64
import codecs
import re
import time
from email.utils import formatdate
from typing import BinaryIO

from ..disk import CHUNK, WholeFile
from .request import Disconnected, Refusal, Request
from .tree import RACY, SUMS, Entry, StoreTree

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
        if entry.size <= BRIEF and self.tree.near:
            total = _summed(file, kind)
        else:
            total = await asyncio.to_thread(_summed, file, kind)
        if time.time() - entry.modified > RACY:
            self.known[key] = total
            while len(self.known) > KNOWN:
                del self.known[next(iter(self.known))]
        return total

    async def etag(self, path: str, file: BinaryIO, entry: Entry) -> str:
        """The MD5 as Algorithmia gives it; the version where summing up would keep the client waiting."""
        if entry.size > SUMMED or not self.tree.near:
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
    if kind := wanted_sum(request):
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
    file.seek(begin)
    while begin < end:
        chunk = file.read(min(CHUNK, end - begin))
        if not chunk:
            raise ConnectionError("a file became shorter while it was sent")
        begin += len(chunk)
        await request.send({"type": "http.response.body", "body": chunk, "more_body": begin < end})


async def receive_file(request: Request, file: WholeFile) -> dict[str, str]:
    """Write the body to a file as it comes; returns the headers that tell its checksum, if one is wanted.

    Raises Refusal when the bytes are not those whose checksum was sent along, and Disconnected.
    """
    sent, expected = _sent_sum(request)
    kind = sent or wanted_sum(request)
    total = SUMS[kind]() if kind else None
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        file.write(chunk)
        if total:
            total.update(chunk)
        more = message.get("more_body", False)
    if sent and total and total.digest() != expected:
        raise Refusal(400, f"{request.uri}: the bytes do not have the {sent} that was sent with them")
    return {"repr_digest": digest_field(kind, total.digest())} if total else {}


def wanted_sum(request: Request) -> str:
    """The checksum that `Want-Repr-Digest` asks for, "" for none that is known here."""
    wanted = re.findall(r"([\w-]+)=(\d+)", request.header(b"want-repr-digest").lower())
    known = [(int(weight), kind) for kind, weight in wanted if kind in SUMS and weight != "0"]
    return max(known, default=(0, ""))[1]


def _sent_sum(request: Request) -> tuple[str, bytes]:
    """The checksum in an upload's `Repr-Digest`, ("", b"") for none that is known here."""
    for kind, text in re.findall(r"([\w-]+)=:([\w+/=]+):", request.header(b"repr-digest")):
        if kind.lower() in SUMS:
            return kind.lower(), base64.b64decode(text + "===")
    return "", b""


def digest_field(kind: str, digest: bytes) -> str:
    """The value of `Repr-Digest`."""
    return f"{kind}=:{base64.b64encode(digest).decode()}:"


def _summed(file: BinaryIO, kind: str) -> bytes:
    total = SUMS[kind]()
    file.seek(0)
    while chunk := file.read(CHUNK):
        total.update(chunk)
    digest: bytes = total.digest()
    return digest


def _content_type(head: bytes, size: int) -> str:
    """Octets, with a charset where the bytes are UTF-8: without one the client's getString guesses."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=size == len(head))
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "application/octet-stream; charset=utf-8"


def _span(request: Request, etag: str, size: int) -> tuple[int, int, int]:
    """`(status, begin, end)` of the bytes to send. Raises Refusal 416 for a range outside the file."""
    if etag in request.header(b"if-none-match").split(", "):
        return 304, 0, 0
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.header(b"range"), re.ASCII)
    if not match or not any(match.groups()) or request.header(b"if-range") not in ("", etag):
        return 200, 0, size
    first, last = match.groups()
    begin = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < begin:
        return 200, 0, size
    if begin >= end:
        raise Refusal(416, f"{request.uri} has {size} bytes", content_range=f"bytes */{size}")
    return 206, begin, end
