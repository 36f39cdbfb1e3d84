"""Requests to an Algorithmia installation with the official client's session, URL and key, and with retries."""

import atexit
import errno
import json
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote, urlsplit

import Algorithmia
from requests import Request, Session
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Retry, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, NewConnectionError, ProtocolError, ReadTimeoutError

from free_ml_stack.credentials.keys import is_loopback
from free_ml_stack.storage import retry
from free_ml_stack.storage.atomic import CHUNK

log = logging.getLogger(__name__)
Body = Callable[[], Any]  # creates the body for each attempt: bytes, or a file with a length
ATTEMPTS = 8
FIRST_ATTEMPTS = 4  # to connect to a server that has never answered; fewer, because it may not exist
LONGEST_PAUSE = 300.0  # maximum Retry-After in seconds
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
SLOWEST = 5e6  # minimum bytes per second that a server is expected to write
BUSY = {408, 425, 429, 500, 502, 503, 504}
NOT_PROCESSED = {429, 503}  # rejected before processing, so that any request can be retried
ERRORS = {
    400: errno.EINVAL,
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    409: errno.EEXIST,
    412: errno.EEXIST,
    413: errno.EFBIG,
    416: errno.ERANGE,
    507: errno.ENOSPC,
}


class StatusError(Exception):
    """Report a response with an error status."""

    def __init__(self, answer: BaseHTTPResponse) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer


class Connection:
    """A connection to an installation as one user; safe with threads and after a fork.

    Raises a subclass of OSError for error responses (FileNotFoundError, FileExistsError, PermissionError, …), and
    ConnectionError if the server does not answer.
    """

    def __init__(self, api_address: str | None, api_key: str | None, connections: int) -> None:
        self.options = (api_address, api_key, connections)
        self.reached = False  # whether the server has ever answered
        self._connect()

    def _connect(self) -> None:
        address, key, connections = self.options
        self.client = Algorithmia.client(key, address)
        self.pool = _pool(self.client.requestSession, self.client.apiAddress, connections)
        parts = urlsplit(self.client.apiAddress)
        through_proxy = self.pool.proxy is not None and parts.scheme == "http"
        self.host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self.prefix = (self.host if through_proxy else "") + parts.path.rstrip("/")
        self.process = os.getpid()
        end = weakref.finalize(self, _release, self.client, self.pool, self.process)
        end.atexit = False  # the client registers its own exit handler

    def json(self, method: str, path: str, value: Any = None, query: str = "", repeatable: bool = False) -> Any:
        """Send a request and return its JSON response, or None if it is empty."""
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json"} if value is not None else {}
        content = (lambda: body) if value is not None else None
        answer = self.send(method, path, headers, query, content, repeatable=repeatable)
        return None if answer.status == 404 else read_json(answer)

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        body: Body | None = None,
        stream: bool = False,
        repeatable: bool = False,
    ) -> BaseHTTPResponse:
        """Send a request and return the successful response; without `stream`, the body is already read.

        Failed attempts are retried if that is safe: not for a POST that the server may have started to process, unless
        it is `repeatable`.
        """
        once, repeated = method == "POST" and not repeatable, False

        def attempt() -> BaseHTTPResponse:
            answer = self._once(method, path, headers or {}, query, body, stream)
            self.reached = True
            if answer.status < 300 or (answer.status == 404 and method == "DELETE" and repeated):
                return answer  # 404: an earlier attempt has deleted it
            raise StatusError(answer)

        def after(error: Exception, attempts: int) -> float:
            nonlocal repeated
            if isinstance(error, StatusError):
                pause = self._after_status(error.answer, path, once, attempts)
            else:
                pause = self._after_failure(error, once, attempts)
            repeated = True
            log.info("%s of %s failed, retrying: %s", method, path, error)
            return pause

        return retry.call(attempt, (StatusError, HTTPError, OSError), after)

    def _after_status(self, answer: BaseHTTPResponse, path: str, once: bool, attempts: int) -> float:
        """Return the seconds to wait after an error status. Raises its error if a retry is useless or unsafe."""
        if attempts == ATTEMPTS or answer.status not in (NOT_PROCESSED if once else BUSY):
            raise _error(answer, path, self.host) from None
        try:
            return min(Retry().get_retry_after(answer) or 0.0, LONGEST_PAUSE)
        except InvalidHeader:
            return 0.0

    def _after_failure(self, error: Exception, once: bool, attempts: int) -> float:
        """Return the seconds to wait after a failed request. Raises ConnectionError if a retry is useless or unsafe."""
        not_processed = isinstance(error, NewConnectionError)
        self.reached |= isinstance(error, ProtocolError | ReadTimeoutError)
        last = FIRST_ATTEMPTS if not_processed and not self.reached else ATTEMPTS
        if attempts >= last or (once and not not_processed):
            failure = str(error).rpartition("): ")[2] or type(error).__name__
            raise ConnectionError(f"no answer from {self.host}: {failure}") from error
        return 0.0

    def _once(
        self, method: str, path: str, headers: Mapping[str, str], query: str, body: Body | None, stream: bool
    ) -> BaseHTTPResponse:
        if self.process != os.getpid():
            self._connect()  # sockets of a parent process must not be used
        content = body() if body else None
        size = 0 if content is None else len(content)
        length = {} if content is None else {"Content-Length": str(size)}
        answer = self.pool.urlopen(
            method,
            f"{self.prefix}/v1/data/{quote(path)}" + (f"?{query}" if query else ""),
            body=content,
            headers={**self._identity(), **length, **headers},
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
            timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS + size / SLOWEST),
        )
        if not stream or answer.status >= 300:
            answer.read(cache_content=True)
            answer.release_conn()
        return answer

    def _identity(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if self.client.apiKey is not None:
            headers["Authorization"] = self.client.apiKey
        elif self.client.bearerToken is not None:
            headers["Authorization"] = f"Bearer {self.client.bearerToken}"
        return headers


def _pool(session: Session, address: str, connections: int) -> HTTPConnectionPool:
    """Return a pool of connections with large blocks for a URL, with the session's proxies and certificates."""
    adapter = HTTPAdapter()
    adapter.init_poolmanager(1, connections, blocksize=CHUNK)
    session.mount(address, adapter)
    settings = session.merge_environment_settings(address, {}, None, None, None)
    if is_loopback(address):
        settings["proxies"] = {}
    request = session.prepare_request(Request("GET", address))
    pool = adapter.get_connection_with_tls_context(request, settings["verify"], settings["proxies"], settings["cert"])
    return cast(HTTPConnectionPool, pool)


def _release(client: Any, pool: HTTPConnectionPool, process: int) -> None:
    """Close what the official client keeps open until the program ends: its sockets, and its file of certificates."""
    pool.close()
    if client.handle is not None and process == os.getpid():  # files of a parent process must not be removed
        atexit.unregister(client.exit_handler)
        client.exit_handler()


def _error(answer: BaseHTTPResponse, path: str, host: str) -> OSError:
    """Return the OSError for an error response; errno determines its subclass."""
    if answer.status < 400:
        return OSError(errno.EIO, f"{host} redirects to {answer.headers.get('Location')}; set that URL")
    number = ERRORS.get(answer.status, errno.EIO)
    try:
        message = str(json.loads(answer.data)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        message = answer.headers.get("X-Error-Message") or f"status {answer.status} from {host}"
    return OSError(number, message, path)


def read_json(answer: BaseHTTPResponse) -> Any:
    """Parse the JSON of a response; None if it is empty. Raises OSError for an error despite a successful status."""
    try:
        value = json.loads(answer.data) if answer.data else None
    except ValueError:
        raise OSError(errno.EIO, "unexpected response, not from Algorithmia; check ALGORITHMIA_API") from None
    finally:
        answer.release_conn()
    if isinstance(value, dict) and "error" in value:
        raise OSError(errno.EIO, str(value["error"]))
    return value
