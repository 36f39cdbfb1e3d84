"""Algorithmia's Data API: files, folders and their access rights over HTTP.

Source: the vendor's OpenAPI description (1.5.1), and the requests of the official client 2.0.5.
"""

import asyncio
import base64
import errno
import logging
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from free_ml_stack.algorithmia import bundle
from free_ml_stack.gateway.data import rights
from free_ml_stack.gateway.data.files import Checksums, receive_file, send_file
from free_ml_stack.gateway.data.paths import path_of, uri_of
from free_ml_stack.gateway.data.tree import Entry, tree_of
from free_ml_stack.gateway.http import HTTPError, Request
from free_ml_stack.storage.atomic import WholeFile

PAGE = 1000  # entries in one page of a listing
INVALID_NAME = re.compile("[\x00-\x1f\x7f#?\\\\\ud800-\udfff\ufffd]")  # not allowed in a URL's path
log = logging.getLogger(__name__)


class DataAPI:
    """Answers `/v1/data/*` and `/v1/connector/data/*` over an fsspec store of users.

    Unauthenticated requests (`user` is None) can read public collections.
    """

    def __init__(self, store: AbstractFileSystem) -> None:
        self.tree = tree_of(store)
        self.sums = Checksums(self.tree)
        self.methods = {
            "HEAD": self.read,
            "GET": self.read,
            "PUT": self.write,
            "POST": self.post,
            "PATCH": self.set_rights,
            "DELETE": self.delete,
        }

    async def __call__(self, request: Request) -> None:
        """Answer a request. Raises HTTPError, and ConnectionError if a response in progress must be aborted."""
        if request.method not in self.methods:
            raise HTTPError(405, f"{request.method} is not supported by the Data API", 5005)
        request = replace(request, path=path_of(request.path, request.user))
        try:
            await self.methods[request.method](request)
        except ConnectionError:
            raise
        except OSError as error:
            raise _http_error(error, request) from error

    async def read(self, request: Request) -> None:
        """GET and HEAD: a file's bytes, or a folder's entries."""
        if found := await self.tree.run(self._open, request):
            with found[0]:
                await send_file(request, self.sums, *found)
        elif request.method == "HEAD":  # without a length, which would need a listing
            await request.start(200, {"content-type": "application/json", "x-data-type": "directory"})
            await request.send({"type": "http.response.body", "body": b""})
        else:
            listing = await asyncio.to_thread(self._listing, request)
            await request.answer(listing, x_data_type="directory")

    def _open(self, request: Request) -> tuple[BinaryIO, Entry] | None:
        """Open the file of a request; None for a folder."""
        self._check_reader(request)
        if len(request.segments) < 2 or self.tree.stat(request.path).is_folder:
            return None
        return self.tree.open(request.path)

    def _check_reader(self, request: Request) -> None:
        segments = request.segments
        if INVALID_NAME.search(request.path):
            raise FileNotFoundError(request.path)
        if request.user is not None and segments[:1] in ([], [request.user]):
            return
        if len(segments) < 2 or rights.get(self.tree, request.path) != [rights.PUBLIC]:
            raise _forbidden(request)

    def _listing(self, request: Request) -> dict[str, Any]:
        """Return a page of a folder: `{"folders", "files", "marker", "acl"}` without empty values."""
        if not request.path:
            return {"folders": [{"name": request.user}]}
        names = self._visible(request)
        marker = request.query.get("marker")
        begin = bisect_right(names, _unmarked(marker)) if marker else 0
        page = names[begin : begin + PAGE]
        entries = self.tree.entries(request.path, [name for _, name in page])
        listing: dict[str, Any] = {
            "folders": [{"name": entry.name} for entry in entries if entry.is_folder],
            "files": [_file_item(entry) for entry in entries if not entry.is_folder],
        }
        if begin + PAGE < len(names):
            listing["marker"] = _marked(page[-1])
        if request.flag("acl") and _has_rights(request.segments):
            listing["acl"] = {"read": rights.get(self.tree, request.path)}
        return {key: value for key, value in listing.items() if value}

    def _visible(self, request: Request) -> list[tuple[bool, str]]:
        top = len(request.segments) == 1
        try:
            names = self.tree.names(request.path)
        except FileNotFoundError:
            if not top:
                raise
            names = []  # the user has no collection yet
        return [item for item in names if not INVALID_NAME.search(item[1]) and not (top and item[1].startswith("."))]

    async def write(self, request: Request) -> None:
        """PUT: store the body as a file atomically."""
        _check_writer(request, depth=3, what="expected a file in a collection: data://user/collection/file")
        if request.header(b"content-range"):  # a part would replace the whole file (RFC 9110, 14.5)
            raise HTTPError(400, "Content-Range is not supported; send the whole file")
        with await self.tree.run(self._create, request) as file:  # discarded by any exception
            headers = await receive_file(request, file, self.sums)
            await asyncio.to_thread(self.tree.commit, file, request.path)
        await request.answer({"result": uri_of(request.path)}, 200, **headers)

    def _create(self, request: Request) -> WholeFile:
        """Create the file of a request."""
        exclusive = request.header(b"if-none-match") == "*"
        found = self.tree.find(request.path)
        if found and exclusive:
            raise HTTPError(412, f"{uri_of(request.path)} already exists")
        if found and found.is_folder:
            raise HTTPError(409, f"{uri_of(request.path)} is a directory")
        return self.tree.create(request.path, exclusive)

    async def post(self, request: Request) -> None:
        """POST: create a folder, or store or send a bundle of files."""
        if request.user is None:  # before the body is read into memory
            raise _forbidden(request)
        if request.header(b"content-type") == bundle.TYPE:
            await self._store_bundle(request)
        elif "files" in (body := await request.json()):
            await self._send_bundle(request, body["files"])
        else:
            await self._make(request, body)

    async def _make(self, request: Request, body: dict[str, Any]) -> None:
        """Create the folder `name` in this one, with the access rights in the body, if any."""
        name = body.get("name")
        if not isinstance(name, str) or not name or "/" in name:
            raise HTTPError(400, "name must be the name of the new directory")
        inner = replace(request, path=path_of(f"/v1/data/{request.path}/{name}", request.user))
        _check_writer(inner, depth=2, what="expected a directory in a user's directory: data://user/collection")
        read = rights.read_list(body.get("acl")) if body.get("acl") is not None else None
        await asyncio.to_thread(self.tree.make_folder, inner.path)
        if read is not None:
            await self.tree.run(rights.put, self.tree, inner.path, read)
        await request.answer({"result": uri_of(inner.path)})

    async def _store_bundle(self, request: Request) -> None:
        """Store many small files, each atomically. An extension of Algorithmia's API."""
        body = await request.body(2 * bundle.SIZE)
        try:
            files = [(path_of(f"/v1/data/{name}", request.user), content) for name, content in bundle.unpack(body)]
        except (ValueError, TypeError, RecursionError):
            raise HTTPError(400, "incomplete or invalid bundle of files") from None
        for path, _ in files:
            _check_writer(replace(request, path=path), depth=3, what="expected a file in a collection")
        await asyncio.to_thread(self._store, files)
        await request.answer({"result": {"stored": len(files)}})

    def _store(self, files: list[tuple[str, memoryview]]) -> None:
        for path, content in files:
            with self.tree.create(path) as file:
                file.write_through(content)
                self.tree.commit(file, path)

    async def _send_bundle(self, request: Request, names: Any) -> None:
        """Send many small files; missing and larger files are omitted."""
        if not isinstance(names, list) or len(names) > bundle.COUNT or not all(isinstance(name, str) for name in names):
            raise HTTPError(400, f"files must be a list of at most {bundle.COUNT} paths")
        paths = {name: path_of(f"/v1/data/{name}", request.user) for name in names}

        def pack() -> bytes:
            for path in paths.values():
                self._check_reader(replace(request, path=path))
            return bundle.pack(self._small_files(paths))

        body = await asyncio.to_thread(pack)
        await request.start(200, {"content-type": bundle.TYPE, "content-length": str(len(body))})
        await request.send({"type": "http.response.body", "body": body})

    def _small_files(self, paths: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        room = bundle.SIZE + bundle.SMALL
        for name, path in paths.items():
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                file, entry = self.tree.open(path)
                with file:
                    if entry.size <= min(bundle.SMALL, room):
                        room -= entry.size
                        yield name, file.read(entry.size)

    async def set_rights(self, request: Request) -> None:
        """PATCH: set the access rights of a folder."""
        _check_writer(request, depth=2, what="expected a collection: data://user/collection")
        read = rights.read_list((await request.json()).get("acl"))
        if not _has_rights(request.segments) or not (await self.tree.run(self.tree.stat, request.path)).is_folder:
            raise HTTPError(400, f"{uri_of(request.path)} cannot have access rights")
        await self.tree.run(rights.put, self.tree, request.path, read)
        await request.answer({"acl": {"read": read}})

    async def delete(self, request: Request) -> None:
        """DELETE: remove a file, or a folder, which must be empty unless `force=true`."""
        _check_writer(request, depth=2, what=f"{uri_of(request.path)} cannot be deleted")
        await request.answer({"result": {"deleted": await asyncio.to_thread(self._delete, request)}})

    def _delete(self, request: Request) -> int:
        """Remove the file or folder of a request; return the number of files."""
        path = request.path
        if not self.tree.stat(path).is_folder:
            self.tree.remove_file(path)
            return 1
        if not request.flag("force") and self.tree.names(path):
            raise HTTPError(409, f"{uri_of(path)} is not empty; use force=true to delete its contents")
        deleted = self.tree.remove_folder(path)
        rights.remove(self.tree, path)
        return deleted


def _check_writer(request: Request, depth: int, what: str) -> None:
    if request.user is None or request.segments[:1] not in ([], [request.user]):
        raise _forbidden(request)
    if len(request.segments) < depth:
        raise HTTPError(400, what)
    if any(INVALID_NAME.search(name) for name in request.segments):
        raise HTTPError(400, "a name must not contain # ? \\ or control characters")


def _forbidden(request: Request) -> HTTPError:
    if request.user is None:
        return HTTPError(401, "authorization required", 2001)
    return HTTPError(403, f"{request.user} has no access to {uri_of(request.path)}", 2001)


def _http_error(error: OSError, request: Request) -> HTTPError:
    if isinstance(error, FileNotFoundError):
        return HTTPError(404, f"no such file or directory: {uri_of(request.path)}")
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return HTTPError(409, f"{uri_of(request.path)} exists, or its parent is a file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return HTTPError(507, "the store is full; nothing was changed", 5001)
    if error.errno == errno.ENAMETOOLONG:
        return HTTPError(400, "a name is too long")
    log.error("%s %s failed", request.method, uri_of(request.path), exc_info=error)
    return HTTPError(500, "the store failed; see the server's log", 5001)


def _has_rights(segments: list[str]) -> bool:
    return len(segments) > 1 and not segments[1].startswith(".")


def _file_item(entry: Entry) -> dict[str, Any]:
    modified = datetime.fromtimestamp(entry.modified, UTC).replace(tzinfo=None)
    # UTC with a fraction and Z: the only format that the client parses
    text = f"{modified.isoformat(timespec='milliseconds')}Z"
    return {"filename": entry.name, "last_modified": text, "size": entry.size}


def _marked(item: tuple[bool, str]) -> str:
    return base64.urlsafe_b64encode(f"{int(item[0])}{item[1]}".encode()).decode()


def _unmarked(marker: str) -> tuple[bool, str]:
    try:
        text = base64.urlsafe_b64decode(marker).decode()
        return bool(int(text[0])), text[1:]
    except (ValueError, IndexError):
        raise HTTPError(400, "invalid marker", 5002) from None
