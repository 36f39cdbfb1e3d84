"""fsspec file system for Algorithmia's Data API: `algorithmia://.my/<collection>/…`."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from glob import has_magic
from pathlib import Path
from stat import S_ISREG
from typing import Any
from urllib.parse import urlencode

from fsspec import AbstractFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import isfilelike

from free_ml_stack.algorithmia.connection import Connection, read_json
from free_ml_stack.algorithmia.mover import AT_ONCE, Mover
from free_ml_stack.algorithmia.streams import DIGEST, Download, ReadFile, Upload, UploadFile
from free_ml_stack.storage.checksums import checksum_of, digest_field, read_digest
from free_ml_stack.storage.parallel import InFlight


class AlgorithmiaFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Files of an Algorithmia installation, or of a gateway with the same Data API.

    URL and key are taken from the arguments, or else as in the official client from `ALGORITHMIA_API` and
    `ALGORITHMIA_API_KEY`. `.my` is the key's user. Missing parent folders are created when a file is stored.
    """

    protocol = ("algorithmia",)
    root_marker = ""

    def __init__(self, api_address: str | None = None, api_key: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.connection = Connection(api_address, api_key, 2 * AT_ONCE)
        self.mover = Mover(self, self.connection)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        name = os.fspath(path)
        for scheme in ("algorithmia://", "data://"):
            name = name.removeprefix(scheme)
        return "/".join(segment for segment in name.split("/") if segment)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """List a folder's entries, or the file itself."""
        path = self._strip_protocol(path)
        found = [info for page in self._pages(path) for info in page]
        return found if detail else [info["name"] for info in found]

    def _pages(self, path: str) -> Iterator[list[dict[str, Any]]]:
        marker = None
        while marker != "":
            query = urlencode({"marker": marker}) if marker else ""
            answer = self.connection.send("GET", path, query=query, stream=True)
            if answer.headers.get("X-Data-Type") == "file":
                answer.close()
                yield [self.info(path)]
                return
            listing = read_json(answer)
            infos = _infos(path, listing)
            if batch := self.mover.current_batch():
                batch.sizes |= {info["name"]: info["size"] for info in infos if info["type"] == "file"}
            yield infos
            marker = listing.get("marker") or ""

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return `name`, `type` and `size`, and for a file `etag` and `modified` if the server sends them."""
        path = self._strip_protocol(path)
        if not path:
            return _folder(path)
        headers = self.connection.send("HEAD", path).headers
        if headers.get("X-Data-Type") == "directory":
            return _folder(path)
        size = headers.get("Content-Length")
        info: dict[str, Any] = {
            "name": path,
            "type": "file",
            "size": int(size) if size else self._listed_size(path),
        }
        if "ETag" in headers:
            info["etag"] = headers["ETag"].strip('"')
        if "Last-Modified" in headers:
            info["modified"] = parsedate_to_datetime(headers["Last-Modified"])
        return info

    def _listed_size(self, path: str) -> int | None:
        """Return the size from the folder's listing, for servers whose HEAD response has none."""
        entries = (info for page in self._pages(self._parent(path)) for info in page)
        return next((info["size"] for info in entries if info["name"] == path), None)

    def _type(self, path: str) -> str:
        """Return "file", "directory", or "" if the path does not exist; other errors are raised."""
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return ""

    def exists(self, path: str, **options: Any) -> bool:
        """Return whether the path exists."""
        return bool(self._type(path))

    def isfile(self, path: str) -> bool:
        """Return whether the path is a file."""
        return self._type(path) == "file"

    def isdir(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return self._type(path) == "directory"

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **options: Any,
    ) -> Any:
        """Walk a folder as in fsspec: a missing one counts as empty, but other errors are raised."""
        return super().walk(path, maxdepth, topdown, _raise_failure if on_error == "omit" else on_error, **options)

    def modified(self, path: str) -> datetime:
        """Return the modification time of a file."""
        modified: datetime = self.info(path)["modified"]
        return modified

    def sha256(self, path: str) -> str:
        """Return the hexadecimal SHA-256 of a file, from the server, or else by reading the file."""
        headers = self.connection.send("HEAD", self._strip_protocol(path), {"Want-Repr-Digest": "sha-256=1"})
        kind, digest = read_digest(headers.headers.get("Repr-Digest", ""))
        if kind == "sha-256":
            return digest.hex()
        with self.open(path) as file:
            return checksum_of(file, "sha-256").hex()

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Create a folder. Raises FileExistsError."""
        self._make(self._strip_protocol(path), create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create a folder and its parents."""
        path = self._strip_protocol(path)
        try:
            self._make(path, repeatable=exist_ok)
        except FileExistsError:
            if not exist_ok or not self.isdir(path):
                raise

    def _make(self, path: str, create_parents: bool = True, repeatable: bool = False) -> None:
        parent, _, name = path.rpartition("/")
        if not parent:
            raise FileExistsError(errno.EEXIST, "the folder of a user always exists", path)
        try:
            self.connection.json("POST", parent, {"name": name}, repeatable=repeatable)
        except FileNotFoundError:
            if not create_parents or "/" not in parent:
                raise
            self.makedirs(parent, exist_ok=True)
            self.connection.json("POST", parent, {"name": name}, repeatable=repeatable)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        self._delete(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        """Remove a file, or an empty folder."""
        self._delete(self._strip_protocol(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with `recursive` folders with their content, each in one request."""
        if maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        with InFlight(AT_ONCE) as calls:
            for one in self.expand_path(path):
                calls.submit(self._delete, one, recursive)

    def expand_path(self, path: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any) -> list[str]:
        """Expand a pattern to paths; an existing path is returned as it is, even if it contains wildcards."""
        if isinstance(path, str) and has_magic(path) and self.exists(path):
            name = self._strip_protocol(path)
            below = self.find(name, maxdepth=maxdepth, withdirs=True) if recursive else []
            return sorted({name, *below})
        found: list[str] = super().expand_path(path, recursive=recursive, maxdepth=maxdepth, **options)
        return found

    def _delete(self, path: str, force: bool = False) -> None:
        try:
            self.connection.json("DELETE", path, query="force=true" if force else "")
        except FileExistsError as error:
            raise OSError(errno.ENOTEMPTY, error.strerror, path) from None

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Copy a file by streaming it through this machine; create the folder `path2` if `path1` is a folder."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        info = self.info(source)
        if info["type"] == "directory":
            self.makedirs(target, exist_ok=True)
        else:
            self.mover.send(target, Upload(lambda: Download(self.connection, source).buffered(), info["size"]))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Return the content of a file, or of a range; negative positions count from the end."""
        path = self._strip_protocol(path)
        if (start or 0) < 0 or (end or 0) < 0:
            start, end, _ = slice(start, end).indices(self.info(path)["size"])
        if end is not None and end <= (start or 0):
            return b""
        try:
            with Download(self.connection, path, start or 0, end).buffered() as file:
                return file.read()
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            return b""  # the range starts after the last byte

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Store bytes as a file; the server verifies their checksum."""
        value = bytes(value)
        headers = {"Repr-Digest": digest_field(DIGEST, checksum_of(io.BytesIO(value), DIGEST))}
        upload = Upload(lambda: io.BytesIO(value), len(value))
        self.mover.send(self._strip_protocol(path), upload, headers, exclusive=mode == "create")

    def put(self, *arguments: Any, **options: Any) -> None:
        """Store local files: small ones in bundles, others in parallel."""
        with self.mover.batched(self.mover.put_bundle):
            super().put(*arguments, **options)

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **options: Any,
    ) -> None:
        """Store a local file; create the folder `rpath` if `lpath` is a folder."""
        source, target = Path(lpath), self._strip_protocol(rpath)
        if (batch := self.mover.current_batch()) and mode != "create":
            found = source.stat()
            size = found.st_size if S_ISREG(found.st_mode) else None
            batch.add(size, self.mover.put, source, target, callback)
        else:
            self.mover.put(source, target, callback, mode == "create")

    def get(
        self,
        *arguments: Any,
        sizes: dict[str, int] | None = None,
        scratch: Path | None = None,
        **options: Any,
    ) -> None:
        """Download files: small ones, according to `sizes` or a listing, in bundles, others in parallel.

        Partial files are written to `scratch`, by default the target's folder.
        """
        with self.mover.batched(self.mover.get_bundle, sizes, scratch):
            super().get(*arguments, **options)

    def get_file(self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, **options: Any) -> None:
        """Download a file atomically to a path, or into an open file; create a folder for a folder."""
        source = self._strip_protocol(rpath)
        if isfilelike(lpath):
            with Download(self.connection, source) as download:
                download.copy_to(lpath, callback)
        elif batch := self.mover.current_batch():
            size = batch.sizes.get(source)
            batch.add(size, self.mover.get, source, Path(lpath), callback, batch.scratch)
        else:
            self.mover.get(source, Path(lpath), callback)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        **options: Any,
    ) -> Any:
        if mode == "rb":
            return ReadFile(self, path)
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"unsupported mode {mode!r}; expected rb, wb, xb or ab")
        if mode == "xb":
            self.mover.raise_if_exists(path)
        file = UploadFile(lambda growing: self.mover.put(growing, path, DEFAULT_CALLBACK, mode == "xb"), autocommit)
        if mode == "ab":
            with suppress(FileNotFoundError):
                self.get_file(path, file)
        return file


def _raise_failure(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "type": "directory", "size": 0}


def _infos(path: str, listing: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert a page of a listing to fsspec's format."""
    prefix = f"{path}/" if path else ""
    folders = [_folder(prefix + item["name"]) for item in listing.get("folders", [])]
    files = [
        {
            "name": prefix + item["filename"],
            "type": "file",
            "size": item["size"],
            "modified": datetime.fromisoformat(item["last_modified"]),
        }
        for item in listing.get("files", [])
    ]
    return folders + files
