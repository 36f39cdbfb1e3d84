"""The storage of a sweep's trials: a journal file, or a database that machines share."""

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from free_ml_stack.errors import StackError, extra_needed, first_line
from free_ml_stack.storage import retry

LOCK = 5  # seconds after which a lock is considered stale
OUTAGE = 60.0  # seconds that a database may be unreachable, as when its server restarts
# Errors of SQLAlchemy: the server is unreachable; another process has made the tables at the same time.
UNREACHABLE = ("OperationalError", "InterfaceError")
CROSSED = ("IntegrityError", "ProgrammingError")
ATTEMPTS = 5
DRIVERS = {
    "postgresql": "psycopg"
}  # otherwise SQLAlchemy takes psycopg2, which has no wheels for new versions of Python


def open_storage(place: str, folder: Path, name: str) -> BaseStorage:
    """Open the storage of trials: a database by URL, or a journal file in a folder, by default the sweep's own."""
    if "://" in place:
        return _open_database(place)
    journal = Path(place) / f"{name}.log" if place else folder / "journal.log"
    journal.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(journal), grace_period=LOCK)
    _cut_torn_line(journal, lock)
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


def _open_database(url: str) -> BaseStorage:
    """Open a database, whose calls are repeated while it is unreachable. Raises StackError if it cannot be opened."""
    scheme, _, rest = url.partition("://")
    driver = DRIVERS.get(scheme)
    if driver and not importlib.util.find_spec(driver):
        raise StackError(f"--study {scheme}://…: {extra_needed(driver, 'postgres')}")
    full = f"{scheme}+{driver}://{rest}" if driver else url

    def after(error: Exception, attempts: int) -> float:
        if type(error).__name__ not in CROSSED or attempts == ATTEMPTS:
            raise error
        return 0.0

    try:
        storage = retry.call(lambda: RDBStorage(full, engine_kwargs={"pool_pre_ping": True}), (Exception,), after)
    except Exception as error:  # from SQLAlchemy, a missing driver, or the database
        raise StackError(f"--study {scheme}://…: {first_line(error)}") from None
    for method in [*dir(BaseStorage), "_create_new_trial", "_get_trials"]:  # Optuna's cache calls the last two
        if callable(found := getattr(storage, method)) and not method.startswith("__"):
            setattr(storage, method, _patient(found, scheme))
    return storage


def _patient(method: Callable[..., Any], scheme: str) -> Callable[..., Any]:
    """Return a method of a database that is repeated for OUTAGE seconds.

    A repetition may leave a second trial without an owner, which is requeued like that of a dead process.
    """

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        end = time.monotonic() + OUTAGE

        def after(error: Exception, attempts: int) -> float:
            cause = error.__cause__ or error
            if type(cause).__name__ not in UNREACHABLE:
                raise error
            if time.monotonic() > end:
                raise StackError(
                    f"--study {scheme}://…: unreachable for {OUTAGE:.0f} seconds: {first_line(cause)}"
                ) from None
            return 0.0

        return retry.call(lambda: method(*arguments, **options), (StorageInternalError,), after)

    return call


def _cut_torn_line(journal: Path, lock: JournalFileOpenLock) -> None:
    """Truncate an incomplete last line, left by a crash; Optuna would reject the whole journal."""
    if not journal.exists() or journal.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock.acquire()
    try:
        text = journal.read_bytes()
        os.truncate(journal, text.rfind(b"\n") + 1)
    finally:
        lock.release()


def ask_lock(place: str) -> AbstractContextManager[Any]:
    """Return the lock for `study.ask` with SQLite, which would give the same trial to two processes."""
    path = place.removeprefix("sqlite:///")
    return FileLock(f"{path}.ask") if path != place else nullcontext()
