"""Statistics of calls, per process and in total."""

import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from free_ml_stack.deployment.answering import JSON_OPTIONS

FIRST = 1e-4  # seconds: the upper end of the first latency class; each further class is 19 % wider
PER_OCTAVE = 4
CLASSES = 80
WINDOW = 300  # seconds of the time series
RECENT = 2000  # calls used to compute drift
VALUES = 100  # different values counted per category


@dataclass
class Counts:
    """Counts that can be merged."""

    calls: Counter[str] = field(default_factory=Counter)  # by version
    errors: Counter[str] = field(default_factory=Counter)  # by type
    watched: dict[str, dict[str, int]] = field(default_factory=dict)  # categories by name, each by value
    latency: list[int] = field(default_factory=lambda: [0] * CLASSES)
    latency_sum: float = 0.0  # seconds
    seconds: dict[str, list[Any]] = field(default_factory=dict)  # [calls, errors, {latency class: calls}]
    insights: dict[str, float] = field(default_factory=dict)
    recent: deque[str] = field(default_factory=deque)  # chunks of log lines; smaller than parsed entries
    recent_calls: int = 0

    def add(self, entries: Sequence[dict[str, Any]], latencies: Sequence[float], lines: bytes) -> None:
        """Count calls, with their log lines."""
        second = self.second(str(int(time.time())))
        for place, calls in Counter(map(latency_class, latencies)).items():
            second[2][str(place)] = second[2].get(str(place), 0) + calls
            self.latency[place] += calls
        errors = Counter(entry["error"] for entry in entries if "error" in entry)
        second[0] += len(entries)
        second[1] += errors.total()
        self.latency_sum += sum(latencies)
        self.calls.update(entry["version"] for entry in entries)
        self.errors.update(errors)
        seen = Counter(
            pair for entry in entries for pair in entry.get("watched", {}).items() if isinstance(pair[1], str)
        )
        for (name, value), calls in seen.items():
            self.count(name, value, calls)
        self.keep(lines.decode())

    def count(self, name: str, value: str, calls: int) -> None:
        """Count calls by the value of the category `name`."""
        values = self.watched.setdefault(name, {})
        value = value if value in values or len(values) < VALUES else "others"
        values[value] = values.get(value, 0) + calls

    def keep(self, lines: str) -> None:
        """Keep the latest lines."""
        self.recent.append(lines)
        self.recent_calls += lines.count("\n")
        while self.recent_calls - (oldest := self.recent[0].count("\n")) >= RECENT:
            self.recent.popleft()
            self.recent_calls -= oldest

    def latest(self) -> list[dict[str, Any]]:
        """Return the latest calls, oldest first."""
        calls = [orjson.loads(line) for lines in self.recent for line in lines.splitlines()]
        return sorted(calls, key=lambda call: str(call["time"]))[-RECENT:]

    def second(self, name: str) -> list[Any]:
        """Return the counts of one second; drop those outside the window."""
        if name not in self.seconds:
            self.seconds[name] = [0, 0, {}]
            for old in [old for old in self.seconds if int(old) < int(name) - WINDOW]:
                del self.seconds[old]
        return self.seconds[name]

    def merge(self, other: dict[str, Any]) -> None:
        """Add the counts of another process, given as `vars` of its Counts."""
        for mine, theirs in (
            (self.calls, other["calls"]),
            (self.errors, other["errors"]),
        ):
            mine.update(theirs)
        for name, values in other["watched"].items():
            for value, calls in values.items():
                self.count(name, value, calls)
        self.latency = [one + two for one, two in zip(self.latency, other["latency"], strict=True)]
        self.latency_sum += other["latency_sum"]
        for name, (calls, errors, places) in other["seconds"].items():
            second = self.second(name)
            second[:] = second[0] + calls, second[1] + errors, Counter(second[2]) + Counter(places)
        self.insights |= other["insights"]
        self.recent.extend(other["recent"])


class Statistics:
    """This process's counts, and the sum over all processes that share a folder."""

    def __init__(self) -> None:
        self.started = time.time()
        self.counts = Counts()
        self.folder: Path | None = None

    def publish(self) -> None:
        """Write this process's counts for the other processes."""
        if self.folder:
            fresh = self.folder / f"{os.getpid()}.fresh"
            fresh.write_bytes(dump(self.counts))
            fresh.replace(self.folder / f"{os.getpid()}.json")

    def total(self) -> Counts:
        """Return the sum over all processes; counts of other processes are up to a second old."""
        total = Counts()
        total.merge(orjson.loads(dump(self.counts)))
        for path in self.folder.glob("*.json") if self.folder else ():
            if path.stem != str(os.getpid()):
                total.merge(orjson.loads(path.read_bytes()))
        return total


def dump(counts: Counts) -> bytes:
    """Return counts as JSON."""
    return orjson.dumps(vars(counts) | {"recent": list(counts.recent)}, option=JSON_OPTIONS)


def latency_class(seconds: float) -> int:
    """Return the index of a latency's class."""
    if seconds <= FIRST:
        return 0
    return min(CLASSES - 1, math.ceil(math.log2(seconds / FIRST) * PER_OCTAVE))


def upper_end(place: int) -> float:
    """Return the upper end of a class in seconds."""
    return float(FIRST * 2 ** (place / PER_OCTAVE))


def percentiles(classes: Sequence[int], wanted: Iterable[float]) -> list[float | None]:
    """Return latency percentiles in seconds, accurate to the width of a class; None without calls."""
    total = sum(classes)
    found: list[float | None] = []
    for percent in wanted:
        rank, place = total * percent / 100, -1
        while total and rank > 0 and place < CLASSES - 1:
            place += 1
            rank -= classes[place]
        found.append(upper_end(max(place, 0)) if total else None)
    return found


def sum_classes(places: Iterable[dict[str, int]]) -> list[int]:
    """Return the sum of the latency classes of several seconds."""
    added = [0] * CLASSES
    for second in places:
        for place, calls in second.items():
            added[int(place)] += calls
    return added
