"""Calls of the deployed algorithm with Algorithmia's client."""

import errno
import json
import mimetypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from free_ml_stack.credentials.keys import is_loopback
from free_ml_stack.errors import NoServiceError, StackError
from free_ml_stack.processes import alive
from free_ml_stack.storage import retry

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

RECORD = "gateway.json"
ATTEMPTS = 4
CONNECT_SECONDS = 5.0
START = 60  # seconds for a gateway to start, and to exit after writing its log


def gateway_address(settings: "Settings") -> tuple[str, str]:
    """Return URL and key of the gateway: of the local one if it runs, otherwise of the configured one."""
    if running := running_gateway(settings):
        return running["url"], running["key"]
    if settings.algorithmia_api and settings.algorithmia_api_key:
        return settings.algorithmia_api, settings.algorithmia_api_key
    raise StackError(f"no gateway is running; start one with `{settings.command} serve` in another terminal")


def running_gateway(settings: "Settings") -> dict[str, Any]:
    """Return the record of the latest local gateway that is running, or an empty dict."""
    return latest_running(read_record(settings.private / RECORD))


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of the latest local gateway, or an empty dict."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the latter after a power failure
        return {}
    return found


def latest_running(record: dict[str, Any]) -> dict[str, Any]:
    """Return the first record whose gateway is running, of a record and those `before` it; or an empty dict."""
    while record and not (alive(record["pid"]) and accepts(record["url"])):
        record = record.get("before", {})
    return record


def accepts(url: str) -> bool:
    """Return whether a server accepts connections: after a restart of the machine another process may have its id."""
    parts = urlsplit(url)
    with suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 0), CONNECT_SECONDS):
        return True
    return False


def call_algorithm(settings: "Settings", inputs: Iterable[Any], version: str = "") -> list[Any]:
    """Call the algorithm once for each input; return its results. Raises StackError with the gateway's message."""
    import Algorithmia

    url, key = gateway_address(settings)
    client = Algorithmia.client(key, url)
    if is_loopback(url) and url.startswith("http:"):
        client.requestSession.trust_env = False  # ignore proxies
    algorithm = client.algo("/".join(filter(None, (settings.algorithm, version))))
    with client.requestSession:  # a gateway that stops waits for open connections
        return [_call_once(algorithm, value, settings, url) for value in inputs]


def _call_once(algorithm: Any, value: Any, settings: "Settings", url: str) -> Any:
    """Call the algorithm with one input. Failed connections are retried, because calls have no side effects."""
    from Algorithmia.errors import AlgorithmException

    def after(error: Exception, attempts: int) -> float:
        if isinstance(error, AlgorithmException):
            raise StackError(f"{settings.algorithm}: {error.message}") from None
        if attempts == ATTEMPTS:
            reason = " ".join(str(error).split())
            raise NoServiceError(
                f"no answer from Algorithmia at {url}: {reason}; run `{settings.command} doctor` for details"
            ) from None
        return 0.0

    # the client raises plain Exception for an error status
    return retry.call(lambda: algorithm.pipe(value).result, (Exception,), after)


def read_input(text: str) -> Any:
    """Read an input from a command-line argument: JSON, text, a file with JSON, text or bytes, or `-` for stdin.

    From a model's sample.json, only the input is returned. Raises StackError.
    """
    if text == "-":
        return _parse_input(sys.stdin.buffer.read() if sys.stdin else b"")  # None if standard input is closed
    if text.lstrip().startswith(("[", "{", '"')):
        return _parse_input(os.fsencode(text))
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - never raises, as `~` may also begin a text
    try:
        if path.is_file():
            return _parse_input(path.read_bytes(), path.suffix == ".json")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a long text
            raise StackError(f"{text}: {error.strerror}") from None
    if os.sep in text and os.path.isdir(path):  # noqa: PTH112 - never raises, as the text may be long
        raise StackError(f"{text} is a folder; name a file in it")
    spaces = any(character.isspace() for character in text)
    if path.suffix[1:].isalnum() and (not spaces or mimetypes.guess_type(text)[0]):
        raise StackError(f"{text}: no such file")
    return _parse_input(os.fsencode(text))


def _parse_input(content: bytes, is_json: bool = False) -> Any:
    """Parse JSON, or else return text or bytes. Raises StackError for invalid JSON."""
    try:
        text = content.decode("utf-8-sig")  # editors on Windows add a byte order mark
    except UnicodeDecodeError as error:
        if is_json:
            raise StackError(f"invalid JSON input: {error}; save it as UTF-8 text") from None
        return bytearray(content)
    try:
        value = orjson.loads(text)  # as the gateway parses it
    except ValueError as error:
        if is_json or text.lstrip().startswith(("[", "{", '"')):
            raise StackError(f"invalid JSON input: {error}") from None
        return text.strip()
    return value["input"] if isinstance(value, dict) and value.keys() == {"input", "output"} else value


@contextmanager
def start_gateway(science: "Science", settings: "Settings") -> Iterator[None]:
    """Run `serve` in a subprocess for a block, unless a gateway is already running or configured."""
    if settings.algorithmia_api or running_gateway(settings):
        yield
        return
    record = settings.private / RECORD
    process = subprocess.Popen(
        [sys.executable, "-m", science.package, "serve"],
        cwd=settings.root,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        assert process.stdout is not None
        if not any(line.startswith("Serving on") for line in process.stdout):
            raise StackError(f"the gateway did not start; run `{settings.command} serve` to see the error")
        assert record.exists()
        yield
    finally:
        process.terminate()
        process.wait(START)
