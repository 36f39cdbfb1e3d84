"""Errors that a user can correct, and the formatting of any error as one line."""


class StackError(Exception):
    """Report an error that the user can correct. The message is one line: what is wrong, where, and what to do."""


class PreemptedError(StackError):
    """Report that training was preempted after it saved a checkpoint, from which it can be resumed."""


class NoServiceError(StackError):
    """Report that the store or the gateway is unreachable or rejects the key. Local storage can replace it."""


def extra_needed(package: str, extra: str) -> str:
    """Return the message for a missing optional package, with the commands that install it."""
    return f"{package} is not installed; run `uv sync --extra {extra}`, or `pip install 'free-ml-stack[{extra}]'`"


def is_external(error: Exception) -> bool:
    """Return whether an error comes from the disk, the network or a service, so that it needs no traceback."""
    clients = ("botocore", "httpx", "httpx2", "requests", "urllib3", "huggingface_hub", "safetensors")
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in clients


def one_line(error: Exception) -> str:
    """Format an error as one line, with the file name and the system's message for an OSError."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    name = "" if isinstance(error, StackError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return an error's first line without a final full stop; of a pydantic validation error, the first three lines."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    count = 3 if "validation error" in lines[0] else 1
    return ": ".join(line.strip() for line in lines[:count]).rstrip(".")
