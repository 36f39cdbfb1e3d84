"""Monitoring: the gateway's logged calls compared with the training data of the deployed model."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fsspec.implementations.dirfs import DirFileSystem

from free_ml_stack.deployment.versions import deployed_build
from free_ml_stack.errors import StackError
from free_ml_stack.evaluation import plots as pictures
from free_ml_stack.evaluation.drift import drift
from free_ml_stack.storage.documents import as_json
from free_ml_stack.storage.manifest import read_manifest
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking.opening import open_run

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from free_ml_stack.project.settings import Settings

LOGS, REFERENCE = "logs", "reference.json"
LOGGED = 3.0  # seconds to wait for a call; a gateway with a local store logs it after a quarter of a second


@dataclass(frozen=True)
class Monitoring:
    """Statistics of the latest version's calls: drift, latency in milliseconds, failures, pictures."""

    version: str
    drift: dict[str, Any]
    calls: int
    errors: int
    median_ms: float
    p99_ms: float
    pictures: dict[str, Path]
    tracked: str


def monitor(settings: "Settings") -> Monitoring:
    """Compare the logged calls of the latest version with its reference; draw and track the result.

    Waits up to LOGGED seconds for a first call. Raises StackError if no version is deployed or it has no calls.
    """
    store = open_store(settings.storage, settings)
    name = settings.algorithm.partition("/")[2]
    build = deployed_build(store, name, settings.command)
    end = time.monotonic() + LOGGED
    while not (calls := [call for call in read_calls(store, name) if call["version"] == build.version]):
        if time.monotonic() > end:
            raise StackError(
                f"no calls of version {build.version} in the log; run `{settings.command} predict`, or wait half a "
                "minute for a gateway that writes its log to another store than a folder"
            )
        time.sleep(0.1)
    known = reference_of(store, build.folder, settings.command)
    good = [call for call in calls if "error" not in call]
    found = drift(known, [call["watched"] for call in good if "watched" in call])
    times = np.array([call["latency_ms"] for call in calls])
    folder = settings.runs / time.strftime("monitor-%Y%m%d-%H%M%S")
    run = open_run(
        settings, folder.name, "monitor", folder, {"algorithm": settings.algorithm, "version": build.version}
    )
    drawn = draw(found, times, folder)
    median, p99 = (float(value) for value in np.percentile(times, (50, 99)))
    errors = len(calls) - len(good)
    run.log(
        0,
        calls=len(calls),
        errors=errors,
        median_ms=median,
        p99_ms=p99,
        **{f"drift_{k}": v for k, v in found["scores"].items()},
    )
    for title, path in drawn.items():
        run.picture(title, path)
    run.summary(verdict=found["verdict"])
    (folder / "monitor.json").write_bytes(as_json(found))
    return Monitoring(build.version, found, len(calls), errors, median, p99, drawn, run.finish())


def reference_of(store: "AbstractFileSystem", folder: str, command: str) -> dict[str, Any]:
    """Return the deployed reference for drift. Raises StackError if it does not match the manifest."""
    content = store.cat_file(f"{folder}/{REFERENCE}")
    entry = read_manifest(DirFileSystem(folder, fs=store))["files"].get(REFERENCE, {})
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise StackError(f"checksum mismatch for {folder}/{REFERENCE}; run `{command} deploy` again")
    known: dict[str, Any] = json.loads(content)
    return known


def read_calls(store: "AbstractFileSystem", name: str) -> list[dict[str, Any]]:
    """Return all logged calls of an algorithm, oldest first; incomplete lines are skipped."""
    calls = []
    for path in sorted(store.glob(f"{LOGS}/{name}/*.jsonl")):
        for line in store.cat_file(path).splitlines():
            try:
                calls.append(json.loads(line))
            except ValueError:
                continue
    return calls


def draw(found: dict[str, Any], times: "np.ndarray[Any, np.dtype[Any]]", folder: Path) -> dict[str, Path]:
    """Draw the pictures of drift and latency."""
    pairs = {}
    for name, counts in found["counts"].items():
        before, after = (np.asarray(counts[side], float) for side in ("reference", "calls"))
        pairs[name] = (
            found["bins"][name],
            (before / max(before.sum(), 1)).tolist(),
            (after / max(after.sum(), 1)).tolist(),
        )
    return {
        "drift": pictures.histograms(pairs, folder / "drift.png"),
        "latency": pictures.latency(times, folder / "latency.png"),
    }
