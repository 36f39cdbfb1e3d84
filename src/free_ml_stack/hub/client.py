"""Calls of the Hub's client: retries of transient errors, one-line messages for others."""

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from free_ml_stack.console import is_terminal
from free_ml_stack.credentials.environment import explain_error
from free_ml_stack.errors import StackError, first_line, one_line
from free_ml_stack.storage import retry

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
ATTEMPTS, PAUSE = 5, 1.0  # seconds before the second one
RETRY_SECONDS = 20.0  # seconds after which errors are raised: most of the client's calls have retried by then
CONFLICTS = (409, 412)  # conflict with another writer
TOO_MANY = 429
TRANSIENT = (*CONFLICTS, TOO_MANY, 500, 502, 503, 504)  # conflict, rate limit, server error
XET_ANSWER = re.compile(r"HTTP status \w+ error \((?P<status>\d+[^)]*)\), domain: (?P<url>\S+)")  # hf_xet
MISSING, UNKNOWN_KEY, FORBIDDEN, PAYMENT = 404, 401, 403, 402


def offline() -> bool:
    """Return whether the Hub's client is in offline mode."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def client() -> "HfApi":
    """Return the Hub's client; its progress bars are shown on a terminal only."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not is_terminal():
        disable_progress_bars()
    return HfApi()


def with_retries(work: Callable[[], T]) -> T:
    """Return the result of `work`; retry it after errors of the Hub or the network.

    A 404 is raised unchanged. Raises StackError with one line after the last attempt or a rejected request.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    transient = (HTTPError, OSError, RuntimeError)
    end = time.monotonic() + RETRY_SECONDS

    def attempt() -> T:
        try:
            return work()
        except transient:
            raise
        except ImportError as error:  # before any call: a proxy may need a missing package
            raise StackError(explain_error(error) or first_line(error)) from None
        except HFValidationError as error:
            raise StackError(first_line(error)) from None
        except ValueError as error:
            raise StackError(explain_error(error) or f"invalid response from the Hub: {first_line(error)}") from None

    def after(error: Exception, attempts: int) -> float:
        return pause_after(error, attempts == ATTEMPTS, time.monotonic() > end)

    return retry.call(attempt, transient, after, PAUSE)


def found_on_hub(place: str, work: Callable[[], T]) -> T:
    """Return the result of `work` as `with_retries` does. Raises StackError without the repository or revision."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    absent = StackError(f"{place}: not found on the Hub, or not readable by this account")

    def ask() -> T:
        try:
            return work()
        except RepositoryNotFoundError:  # also for a 401 without a key
            raise absent from None

    try:
        return with_retries(ask)
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        assert error.response.status_code == MISSING
        raise absent from None


def pause_after(error: Exception, last: bool, late: bool) -> float:
    """Return the minimum pause in seconds after an error; if `late`, only for a conflict with another writer.

    Raises the error for a 404, StackError if a retry is useless or this was the `last` attempt.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    wrapped = not isinstance(error, HTTPError) and isinstance(error.__cause__, HTTPError)
    answer = error.__cause__ if wrapped else error  # downloads wrap the error
    if offline():
        raise StackError("HF_HUB_OFFLINE is set; unset it and try again") from None
    if not isinstance(answer, HfHubHTTPError):
        check_cache_writable()
        if message := explain_error(answer or error):
            raise StackError(message) from None
        if message := xet_error(first_line(error)):
            raise StackError(message) from None
        if last or late or not isinstance(answer, HTTPError):  # hf_xet retries itself
            raise StackError(f"cannot reach the Hub: {first_line(error)}; check the network, then try again") from None
        return 0.0
    status = answer.response.status_code
    if status == MISSING:
        raise answer
    limits = parse_ratelimit_headers(answer.response.headers)  # in every response
    asked_too_often = limits is not None and limits.remaining == 0
    of_a_kind = status == TOO_MANY and limits is not None and not asked_too_often  # such as commits per hour
    if last or of_a_kind or status not in (CONFLICTS if late else TRANSIENT):
        raise http_error(answer) from None
    return float(limits.reset_in_seconds) if limits and asked_too_often else 0.0


def xet_error(text: str) -> str:
    """Return the message for an error of Xet, the Hub's file storage, in hf_xet's text; "" for other texts."""
    found = XET_ANSWER.search(text)
    if not found:
        return ""
    refused = int(found["status"].split()[0]) in (UNKNOWN_KEY, FORBIDDEN)
    remedy = "see `doctor`" if refused else "try again later, or set HF_HUB_DISABLE_XET=1 (not for buckets)"
    return f"error from the Hub's file storage: {found['status']} at {found['url']}; {remedy}"


def http_error(error: "HfHubHTTPError") -> StackError:
    """Return a StackError with one line and a remedy for an HTTP error."""
    status, reason = error.response.status_code, " ".join((error.server_message or str(error)).split())[:200]
    if status in (PAYMENT, FORBIDDEN) and "storage" in reason.casefold():  # sent as 403, like a key without rights
        return StackError(f"storage full on the Hub ({status}): {reason}; delete files there; `doctor` shows the usage")
    right = "read" if error.response.request.method in ("GET", "HEAD") else "write"
    if status in (UNKNOWN_KEY, FORBIDDEN):
        needed = f"it needs {right} access; " if status == FORBIDDEN else ""
        return StackError(f"key rejected by the Hub ({status}): {reason}; {needed}run `doctor`")
    return StackError(f"error from the Hub ({status}): {reason}{'; try again later' if status in TRANSIENT else ''}")


def error_line(error: Exception) -> str:
    """Return one line for an error, with a remedy if it is one of the Hub."""
    if type(error).__module__.partition(".")[0] == "huggingface_hub" and hasattr(error, "server_message"):
        return str(http_error(cast("HfHubHTTPError", error)))
    return xet_error(one_line(error)) or one_line(error)


def check_cache_writable() -> None:
    """Raise StackError if the cache of the Hub's client is not writable; its own message is misleading."""
    from huggingface_hub import constants

    for name in ("HF_HOME", "HF_HUB_CACHE"):
        folder = getattr(constants, name)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise StackError(
                f"{name}: cannot write to {folder} ({error.strerror}); set {name} to another folder"
            ) from None
