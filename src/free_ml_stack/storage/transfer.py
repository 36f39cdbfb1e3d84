"""Copy files between two stores: changed files only, concurrently, resumable."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.console import Progress
from free_ml_stack.errors import StackError
from free_ml_stack.storage.atomic import CHUNK
from free_ml_stack.storage.changes import on_hub
from free_ml_stack.storage.checksums import checksum_of, git_blob_id
from free_ml_stack.storage.parallel import InFlight

CONCURRENT = 8
BATCH_FILES = 200  # files in one commit or batch to the Hub
XET = "xet"  # the Hub's own checksum, of files in a bucket the only one
Infos = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Moved:
    """The result of a transfer: files copied, files unchanged, bytes copied."""

    copied: int
    same: int
    size: int


def transfer(source: AbstractFileSystem, target: AbstractFileSystem) -> Moved:
    """Copy the files of one store to another, except those with the same checksum.

    Nothing is deleted. After a failure the same call resumes the transfer. Raises StackError.
    """
    try:
        wanted = _files(source)
        if not wanted:
            raise StackError(f"{source.path} contains no files to copy; check its spelling")
        present = _files(target)
        missing = _missing(source, target, wanted, present)
        size = sum(info["size"] for info in missing.values())
        with _progress(size) as done:
            _copy_all(source, target, missing, done)
    except OSError as error:
        reason = f"{error.strerror or str(error).splitlines()[0]} {error.filename or ''}".strip()
        raise StackError(f"transfer failed: {reason}; run it again to resume") from error
    return Moved(len(missing), len(wanted) - len(missing), size)


def _files(store: AbstractFileSystem) -> Infos:
    store.fs.invalidate_cache()
    try:
        found = store.find("", detail=True)
    except FileNotFoundError:  # created with the first file
        return {}
    return {name.lstrip("/"): info for name, info in found.items() if name != ".gitattributes"}


def _missing(source: AbstractFileSystem, target: AbstractFileSystem, wanted: Infos, present: Infos) -> Infos:
    missing = {name for name in wanted if name not in present or wanted[name]["size"] != present[name]["size"]}

    local = isinstance(source.fs, LocalFileSystem) or isinstance(target.fs, LocalFileSystem)

    def compare(name: str) -> None:
        kind = _kind(_listed_checksums(present[name]), _listed_checksums(wanted[name]), local)
        if _sum(source, name, wanted[name], kind) != _sum(target, name, present[name], kind):
            missing.add(name)

    with InFlight(CONCURRENT) as calls:
        for name in wanted.keys() - missing:
            calls.submit(compare, name)
    return {name: info for name, info in wanted.items() if name in missing}


def _listed_checksums(info: dict[str, Any]) -> dict[str, str]:
    """Return the hexadecimal checksums, by kind, that a listing of the Hub or of S3 contains."""
    etag = str(info.get("ETag", "")).strip('"')
    listed = {
        "sha-256": (info.get("lfs") or {}).get("sha256"),
        "git": "" if info.get("lfs") else info.get("blob_id"),
        "md5": etag if len(etag) == 32 else "",  # the ETag of a multipart upload is not an MD5
        XET: info.get("xet_hash"),
    }
    return {kind: value for kind, value in listed.items() if value}


def _kind(there: dict[str, str], here: dict[str, str], local: bool) -> str:
    """Choose a kind of checksum: one that both sides provide, else one that can be computed."""
    both = [kind for kind in there if kind in here]
    computable = both or (local and find_spec("hf_xet"))  # which some systems lack
    return next((kind for kind in both or (*there, *here) if kind != XET or computable), "sha-256")


def _sum(store: AbstractFileSystem, name: str, info: dict[str, Any], kind: str) -> str:
    """Return a file's checksum in hexadecimal: from the listing, or computed from its content."""
    if listed := _listed_checksums(info).get(kind):
        return listed
    if kind == XET:
        from hf_xet import hash_files

        return str(hash_files([f"{store.path}/{name}"])[0].hash)
    if kind == "sha-256" and hasattr(store.fs, "sha256"):
        return str(store.fs.sha256(f"{store.path}/{name}"))
    with store.open(name, "rb") as file:
        if kind != "git":
            return checksum_of(file, kind).hex()
        return git_blob_id(file, info["size"])


def _copy_all(
    source: AbstractFileSystem, target: AbstractFileSystem, missing: Infos, done: Callable[[int], None]
) -> None:
    names = list(missing)
    if on_hub(target):
        _change_in_batches(source, target, missing, done)
    elif isinstance(source.fs, LocalFileSystem):
        target.put([f"{source.path}/{name}" for name in names], names, callback=ByteCounter(done))
    elif isinstance(target.fs, LocalFileSystem) and hasattr(source.fs, "sha256"):
        sizes = {f"{source.path}/{name}": info["size"] for name, info in missing.items()}
        places = [f"{target.path}/{name}" for name in names]
        scratch = getattr(target.fs, "scratch", None)
        source.get(names, places, sizes=sizes, scratch=scratch, callback=ByteCounter(done))
    else:
        with InFlight(CONCURRENT) as calls:
            for name in names:
                calls.submit(_copy, source, target, name, done)


def _copy(source: AbstractFileSystem, target: AbstractFileSystem, name: str, done: Callable[[int], None]) -> None:
    with source.open(name, "rb") as file, target.open(name, "wb") as copy:
        while chunk := file.read(CHUNK):
            copy.write(chunk)
            done(len(chunk))


class ByteCounter(Callback):  # type: ignore[misc]
    """Reports the bytes of all files of one call to `done`."""

    def __init__(self, done: Callable[[int], None]) -> None:
        super().__init__()
        self.done = done

    def branched(self, path_1: str, path_2: str, **options: Any) -> Callback:
        """Return the callback of one file, whose bytes are negative if an attempt is restarted."""
        each = Callback()
        each.relative_update = self.done
        return each


def _change_in_batches(
    source: AbstractFileSystem, target: AbstractFileSystem, missing: Infos, done: Callable[[int], None]
) -> None:
    """Add files to a repository or bucket on the Hub in batches; create it if it is missing."""
    from free_ml_stack.storage import repository

    place, origin, names = on_hub(target), on_hub(source), list(missing)
    assert place
    repository.make(place)
    for start in range(0, len(names), BATCH_FILES):
        part = names[start : start + BATCH_FILES]
        copies = {}
        if origin and not place.versioned:  # server-side, without a download
            copies = {name: (origin, str(xet)) for name in part if (xet := missing[name].get("xet_hash"))}
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path | bytes] = {}
            for name in part:
                if name in copies:
                    continue
                local = Path(source.path if isinstance(source.fs, LocalFileSystem) else folder, name)
                if not local.exists():
                    local.parent.mkdir(parents=True, exist_ok=True)
                    source.get_file(name, str(local))
                files[name] = local
            repository.change(place, files, copy=copies)
        done(sum(missing[name]["size"] for name in part))
    target.invalidate_cache()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Yield a thread-safe function that reports transferred bytes."""
    lock, count, progress = Lock(), 0, Progress(total, "B", scaled=True)

    def done(size: int) -> None:
        nonlocal count
        with lock:
            count += size
            progress.at(count)

    try:
        yield done
    finally:
        progress.close()
