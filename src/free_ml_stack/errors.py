"""The error that a user can mend, and errors as one line of text."""


class StackError(Exception):
    """Report a mistake that the user can correct: one line says what is wrong, where, and what to do."""


class PreemptedError(StackError):
    """Training was told to stop, and has written a checkpoint to go on from."""


class NoServiceError(StackError):
    """The store or the gateway can't be used now, or not with this key; one in this project can stand in."""


def from_outside(error: Exception) -> bool:
    """Whether an error is the disk's, the network's or a service's: a line is enough for it."""
    clients = ("botocore", "httpx", "httpx2", "requests", "urllib3", "huggingface_hub", "safetensors")
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in clients


def in_a_line(error: Exception) -> str:
    """An error in one line, that of a system call in its own words."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    name = "" if isinstance(error, StackError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of an error, for others to end; with what is wrong with it where pydantic refuses a value."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    count = 3 if "validation error" in lines[0] else 1
    return ": ".join(line.strip() for line in lines[:count]).rstrip(".")
