"""The Hub's client: patient with what passes, one line for what does not."""

import re
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from free_ml_stack.console import is_terminal
from free_ml_stack.credentials.environment import explain_error
from free_ml_stack.errors import StackError, first_line
from free_ml_stack.storage import retry

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
ATTEMPTS, PAUSE = 5, 1.0  # seconds before the second one
PATIENCE = 20.0  # seconds after which trouble is told: most of the client's calls have been patient themselves by then
CROSSED = (409, 412)  # another writer was quicker
TOO_MANY = 429
PASSING = (*CROSSED, TOO_MANY, 500, 502, 503, 504)  # too many requests, a server in trouble
XET_ANSWER = re.compile(r"HTTP status \w+ error \((?P<status>\d+[^)]*)\), domain: (?P<url>\S+)")  # hf_xet
MISSING, UNKNOWN_KEY, FORBIDDEN = 404, 401, 403


def offline() -> bool:
    """Whether the Hub's client has been told to ask nothing."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def client() -> "HfApi":
    """The Hub's client; it shows progress only where somebody watches."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not is_terminal():
        disable_progress_bars()
    return HfApi()


def http_library() -> Any:
    """Return the module whose errors the Hub's client raises: httpx2, or httpx before its version 2."""
    from huggingface_hub import utils

    return getattr(utils, "httpx", None) or import_module("httpx")


def with_retries(work: Callable[[], T]) -> T:
    """Return what `work` returns, tried again while the Hub or the way there is in trouble.

    What is missing is the caller's business. Raises StackError with one line where it stays in trouble or refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    httpx = http_library()

    passing = (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError)
    end = time.monotonic() + PATIENCE

    def attempt() -> T:
        try:
            return work()
        except passing:
            raise
        except ImportError as error:  # before any call, where a proxy needs what is not installed
            raise StackError(explain_error(error) or first_line(error)) from None
        except HFValidationError as error:
            raise StackError(first_line(error)) from None
        except ValueError as error:
            raise StackError(f"that was no answer of the Hub: {first_line(error)}") from None

    def after(error: Exception, attempts: int) -> float:
        return pause_after(error, attempts == ATTEMPTS, time.monotonic() > end)

    return retry.call(attempt, passing, after, PAUSE)


def pause_after(error: Exception, last: bool, late: bool) -> float:
    """Return the seconds that the Hub asks to wait after an error; `late`, only if another writer crossed.

    Raises the error where something is missing, StackError where to wait is vain or this was the `last` attempt.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    httpx = http_library()

    wrapped = not isinstance(error, httpx.HTTPError) and isinstance(error.__cause__, httpx.HTTPError)
    answer = error.__cause__ if wrapped else error  # downloads wrap it
    if offline():
        raise StackError("HF_HUB_OFFLINE is set, so the Hub is not asked; unset it and try again") from None
    if not isinstance(answer, HfHubHTTPError):
        check_cache_writable()
        if told := explain_error(answer or error):
            raise StackError(told) from None
        if told := xet_refusal(first_line(error)):
            raise StackError(told) from None
        if last or late or not isinstance(answer, httpx.HTTPError):  # hf_xet has tried by itself
            raise StackError(
                f"the Hub can't be reached: {first_line(error)}; check the network, then try again"
            ) from None
        return 0.0
    status = answer.response.status_code
    if status == MISSING:
        raise answer
    limits = parse_ratelimit_headers(answer.response.headers)  # every answer has them
    asked_too_often = limits is not None and limits.remaining == 0
    of_a_kind = status == TOO_MANY and limits is not None and not asked_too_often  # such as commits, for an hour
    if last or of_a_kind or status not in (CROSSED if late else PASSING):
        raise http_error(answer) from None
    return float(limits.reset_in_seconds) if limits and asked_too_often else 0.0


def xet_refusal(text: str) -> str:
    """What to do where Xet, the Hub's file storage, has answered an error, as hf_xet words it; "" for anything else."""
    found = XET_ANSWER.search(text)
    if not found:
        return ""
    refused = int(found["status"].split()[0]) in (UNKNOWN_KEY, FORBIDDEN)
    remedy = "see `doctor`" if refused else "set HF_HUB_DISABLE_XET=1, which takes the Hub's older way, and try again"
    return f"the Hub's file storage answers {found['status']} at {found['url']}; {remedy}"


def http_error(error: "HfHubHTTPError") -> StackError:
    """A refusal in one line, with its remedy."""
    status, reason = error.response.status_code, " ".join((error.server_message or str(error)).split())[:200]
    right = "read" if error.response.request.method in ("GET", "HEAD") else "write"
    if status in (UNKNOWN_KEY, FORBIDDEN):
        needed = f"it needs {right} access; " if status == FORBIDDEN else ""
        return StackError(f"key rejected by the Hub ({status}): {reason}; {needed}run `doctor`")
    return StackError(f"the Hub answers {status}: {reason}{'; try again later' if status in PASSING else ''}")


def check_cache_writable() -> None:
    """Refuse a folder that the Hub's client can't keep its files in: what it says of that itself misleads."""
    from huggingface_hub import constants

    for name in ("HF_HOME", "HF_HUB_CACHE"):
        folder = getattr(constants, name)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise StackError(
                f"{name}: the Hub's client can't keep files in {folder} ({error.strerror}); name another folder there"
            ) from None
