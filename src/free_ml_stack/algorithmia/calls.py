"""Call the deployed algorithm through Algorithmia's own client."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.credentials.keys import is_loopback
from free_ml_stack.errors import NoServiceError, StackError
from free_ml_stack.processes import alive
from free_ml_stack.storage import retry

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

RECORD = "gateway.json"
ATTEMPTS = 4
START = 60  # seconds that a gateway gets to start, and to write its log


def address(settings: "Settings") -> tuple[str, str]:
    """Address and key of the gateway: the local one while it runs, else the configured one."""
    if running := local(settings):
        return running["url"], running["key"]
    if settings.algorithmia_api and settings.algorithmia_api_key:
        return settings.algorithmia_api, settings.algorithmia_api_key
    raise StackError(f"no gateway runs: start one with `{settings.command} serve` in another terminal")


def local(settings: "Settings") -> dict[str, Any]:
    """The record of the gateway that runs here, empty where none does."""
    try:
        running: dict[str, Any] = json.loads((settings.private / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return running if alive(running["pid"]) else {}


def call(settings: "Settings", inputs: Iterable[Any], version: str = "") -> list[Any]:
    """The algorithm's answers to some inputs, one call each; StackError with the gateway's words if it refuses."""
    import Algorithmia

    url, key = address(settings)
    client = Algorithmia.client(key, url)
    if is_loopback(url) and url.startswith("http:"):
        client.requestSession.trust_env = False  # which would name proxies
    algorithm = client.algo("/".join(filter(None, (settings.algorithm, version))))
    return [answer(algorithm, value, settings, url) for value in inputs]


def answer(algorithm: Any, value: Any, settings: "Settings", url: str) -> Any:
    """One answer. A call that does not get through is made again: it changes nothing."""
    from Algorithmia.errors import AlgorithmException

    def after(error: Exception, attempts: int) -> float:
        if isinstance(error, AlgorithmException):
            raise StackError(f"{settings.algorithm}: {error.message}") from None
        if attempts == ATTEMPTS:
            reason = " ".join(str(error).split())
            raise NoServiceError(
                f"Algorithmia at {url} does not answer: {reason}; `{settings.command} doctor` says more"
            ) from None
        return 0.0

    # the client has no other error than Exception for a status that is none of success
    return retry.call(lambda: algorithm.pipe(value).result, (Exception,), after)


def read_input(text: str) -> Any:
    """What an argument means: JSON or a text, a file of either, another file's bytes, or standard input (`-`).

    Of a model's sample.json it is the input. Raises StackError.
    """
    if text == "-":
        return _meant(sys.stdin.buffer.read() if sys.stdin else b"")  # closed by who started us
    if text.lstrip().startswith(("[", "{", '"')):
        return _meant(text.encode())
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return _meant(path.read_bytes())
    except OSError as error:
        raise StackError(f"{text}: {error.strerror}") from None
    if path.suffix[1:].isalnum() and not any(character.isspace() for character in text):
        raise StackError(f"no file {text}")
    return _meant(text.encode())


def _meant(content: bytes) -> Any:
    """JSON as its value, a text as it is, anything else as bytes. Raises StackError for JSON that is not whole."""
    try:
        text = content.decode("utf-8-sig")  # Windows' editors put a mark first
    except UnicodeDecodeError:
        return bytearray(content)
    try:
        value = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith(("[", "{", '"')):
            raise StackError(f"the input is not JSON: {error}") from None
        return text.strip()
    return value["input"] if isinstance(value, dict) and value.keys() == {"input", "output"} else value


@contextmanager
def gateway(science: "Science", settings: "Settings") -> Iterator[None]:
    """A gateway in a process of its own, as `serve` starts it, stopped in the end; none where one runs or is named."""
    if settings.algorithmia_api or local(settings):
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
            raise StackError(f"the gateway did not start; `{settings.command} serve` says why")
        assert record.exists()
        yield
    finally:
        process.terminate()
        process.wait(START)
