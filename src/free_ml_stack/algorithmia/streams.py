"""Files of Algorithmia's Data API as streams: reads that resume after failures, and atomic writes."""

import errno
import io
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from free_ml_stack.algorithmia.connection import ATTEMPTS, Connection
from free_ml_stack.storage import retry
from free_ml_stack.storage.atomic import CHUNK, WholeFile, write_all
from free_ml_stack.storage.checksums import SUMS, read_digest

DIGEST = "xxh3-128"  # a checksum with negligible cost
WANT_DIGEST = {"Want-Repr-Digest": f"{DIGEST}=1"}
LARGE = 1 << 20  # minimum bytes of a file for which a separate request for the checksum pays off


class ChecksumError(OSError):
    """Report that transferred bytes do not match their checksum."""


class Download(io.RawIOBase):
    """A stream of a file's bytes from `start` to `end`, which reconnects after failures.

    A file that is read completely is verified with the server's checksum. Raises ChecksumError if it does not match,
    IsADirectoryError for a folder, and OSError if the file is replaced during the read.
    """

    def __init__(self, connection: Connection, path: str, start: int = 0, end: int | None = None) -> None:
        self.connection, self.path = connection, path
        self.position, self.end = start, end
        self.etag, self.size, self.failures = "", -1, 0
        whole = start == 0 and end is None
        self.answer = self._open(WANT_DIGEST if whole else {})
        self.kind, self.expected = self._announced_digest() if whole else ("", b"")
        self.total = SUMS[self.kind]() if self.kind else None

    def _open(self, wish: dict[str, str]) -> BaseHTTPResponse:
        headers = dict(wish)
        if self.position or self.end is not None:
            headers["Range"] = f"bytes={self.position}-{'' if self.end is None else self.end - 1}"
            headers |= {"If-Range": self.etag} if self.etag else {}
        answer = self.connection.send("GET", self.path, headers, stream=True)
        if answer.headers.get("X-Data-Type") == "directory":
            answer.close()
            raise IsADirectoryError(errno.EISDIR, "is a directory", self.path)
        self._check_version(answer)
        if answer.status != 206:  # the server does not support ranges
            for _ in range(self.position // CHUNK):
                answer.read(CHUNK)
            answer.read(self.position % CHUNK)
        return answer

    def _check_version(self, answer: BaseHTTPResponse) -> None:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        size = int(match[1] if match else answer.headers.get("Content-Length", -1))
        etag = answer.headers.get("ETag", "")
        if self.failures and (size, etag) != (self.size, self.etag):
            answer.close()
            raise OSError(errno.ESTALE, "the file was replaced during the read", self.path)
        self.size, self.etag = size, etag
        if size >= 0:
            self.end = size if self.end is None else min(self.end, size)

    def _announced_digest(self) -> tuple[str, bytes]:
        """Return the algorithm and the checksum sent by the server, or the algorithm to request afterwards."""
        kind, digest = read_digest(self.answer.headers.get("Repr-Digest", ""))
        if kind:
            return kind, digest
        if re.fullmatch(r'"?[0-9a-f]{32}"?', self.etag):
            return "md5", bytes.fromhex(self.etag.strip('"'))
        return (DIGEST, b"") if self.size >= LARGE else ("", b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into a buffer; return their number, 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self.end is not None:
            view = view[: self.end - self.position]
        count = self._receive(view) if len(view) else 0
        if self.total:
            self.total.update(view[:count])
        self.position += count
        if count == 0 or self.position == self.end:
            self._finish()
        return count

    def _receive(self, view: memoryview) -> int:
        while True:
            try:
                # urllib3's own readinto copies every byte twice
                count: int = self.answer._fp.readinto(view)  # type: ignore[attr-defined]
                if count or self.end is None:
                    self.failures = 0
                    return count
                failure: Exception = ConnectionError(f"connection lost after {self.position} bytes of {self.path}")
            except (OSError, HTTPError, HTTPException) as error:
                failure = error
            self.answer.close()
            self.failures += 1
            if self.failures == ATTEMPTS:
                raise failure
            retry.wait(self.failures)
            self.answer = self._open({})

    def _finish(self) -> None:
        """Release the connection, and verify the checksum of a complete file."""
        self.answer.release_conn()
        if not self.total:
            return
        if not self.expected:
            headers = self.connection.send("HEAD", self.path, WANT_DIGEST).headers
            if headers.get("ETag", "") == self.etag:
                self.expected = read_digest(headers.get("Repr-Digest", ""))[1]
        if self.expected and self.total.digest() != self.expected:
            raise ChecksumError(errno.EIO, f"checksum mismatch after download ({self.kind})", self.path)
        self.total = None

    def buffered(self) -> io.BufferedReader:
        """Wrap the stream in a buffer, for reads of any size."""
        return io.BufferedReader(self, CHUNK)

    def copy_to(self, file: Any, callback: Any) -> None:
        """Write all bytes to an open file, in constant memory."""
        callback.set_size(self.size)
        buffer = memoryview(bytearray(max(1, min(CHUNK, self.size) if self.size >= 0 else CHUNK)))
        while count := self.readinto(buffer):
            write_all(file, buffer[:count])
            callback.relative_update(count)

    def close(self) -> None:
        """Close the connection if it was not read to the end."""
        if not self.closed and self.position != self.end and hasattr(self, "answer"):
            self.answer.close()
        super().close()


class RemoteFile(io.RawIOBase):
    """A seekable stored file; sequential reads increase the read-ahead."""

    def __init__(self, connection: Connection, path: str) -> None:
        self.connection, self.path = connection, path
        self.download = Download(connection, path)
        self.position, self.size, self.window = 0, self.download.size, CHUNK

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the server sends sizes."""
        return self.size >= 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position; the next read sends the request."""
        base = (0, self.position, self.size)[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start of the file", self.path)  # zipfile relies on this error
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into a buffer; return their number, 0 at the end."""
        if 0 <= self.size <= self.position:
            return 0
        if self.download.position != self.position or self.download.position == self.download.end:
            self._reopen(len(buffer))
        count = self.download.readinto(buffer)
        self.position += count
        return count

    def _reopen(self, wanted: int) -> None:
        in_order = self.download.position == self.position
        self.window = max(wanted, CHUNK, self.window * 4 if in_order else 0)
        etag = self.download.etag
        self.download.close()
        self.download = Download(self.connection, self.path, self.position, self.position + self.window)
        if self.download.etag != etag:
            raise OSError(errno.ESTALE, "the file was replaced during the read", self.path)

    def close(self) -> None:
        """Close the connection."""
        if not self.closed and hasattr(self, "download"):
            self.download.close()
        super().close()


class ReadFile(io.BufferedReader):
    """The readable file returned by `open`; it can be pickled."""

    def __init__(self, fs: Any, path: str) -> None:
        raw = RemoteFile(fs.connection, path)
        super().__init__(raw, CHUNK)
        self.fs, self.path, self.size = fs, path, raw.size

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reopen, (self.fs, self.path, self.tell())


def _reopen(fs: Any, path: str, position: int) -> ReadFile:
    file = ReadFile(fs, path)
    file.seek(position)
    return file


class Upload:
    """The body of a PUT: a file whose checksum is computed while it is sent. Call `begin` before each attempt."""

    def __init__(
        self, opened: Callable[[], Any], size: int, sent: Callable[[int], object] = lambda count: None
    ) -> None:
        self.opened, self.size, self.sent = opened, size, sent
        self.file: Any = io.BytesIO()
        self.count = 0

    def begin(self) -> "Upload":
        """Restart at the first byte."""
        self.file.close()
        self.file, self.total = self.opened(), SUMS[DIGEST]()
        self.sent(-self.count)
        self.count = 0
        return self

    def __len__(self) -> int:
        return self.size

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes."""
        chunk: bytes = self.file.read(size)
        self.total.update(chunk)
        self.count += len(chunk)
        self.sent(len(chunk))
        return chunk


class UploadFile(WholeFile):
    """A writable file on local disk, which is uploaded when it is closed."""

    def __init__(self, send: Callable[[Path], None], autocommit: bool) -> None:
        growing = Path(tempfile.gettempdir(), uuid.uuid4().hex)
        super().__init__(io.FileIO(growing, "xb"), growing, growing, autocommit=autocommit)
        self.send = send

    def finish(self) -> None:
        """Flush without fsync, because the file is temporary."""
        self.flush()
        self.raw.close()

    def _sync_ahead(self, count: int) -> None:
        pass

    def commit(self) -> None:
        """Upload the file."""
        self.send(self.growing)
        self.discard()
