"""What is counted of the calls, in each process and over all of them."""

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

FIRST = 1e-4  # seconds: the end of the first class of latency; each further one is 19 % wider
PER_OCTAVE = 4
CLASSES = 80
WINDOW = 300  # seconds that the time series go back
RECENT = 2000  # calls that drift is told from
VALUES = 100  # values of a category that are told apart


@dataclass
class Counts:
    """Figures that can be added up."""

    calls: Counter[str] = field(default_factory=Counter)  # by version
    errors: Counter[str] = field(default_factory=Counter)  # by type
    watched: dict[str, dict[str, int]] = field(default_factory=dict)  # categories by name, each by value
    latency: list[int] = field(default_factory=lambda: [0] * CLASSES)
    latency_sum: float = 0.0  # seconds
    seconds: dict[str, list[Any]] = field(default_factory=dict)  # [calls, errors, {latency class: calls}]
    insights: dict[str, float] = field(default_factory=dict)
    recent: deque[str] = field(default_factory=deque)  # lines of the log, many in a piece; smaller than what they say
    recent_calls: int = 0

    def add(self, entries: Sequence[dict[str, Any]], latencies: Sequence[float], lines: bytes) -> None:
        """Count calls, as they were logged in `lines`."""
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
        """Count calls whose category `name` has a value."""
        values = self.watched.setdefault(name, {})
        value = value if value in values or len(values) < VALUES else "others"
        values[value] = values.get(value, 0) + calls

    def keep(self, lines: str) -> None:
        """Remember the latest lines."""
        self.recent.append(lines)
        self.recent_calls += lines.count("\n")
        while self.recent_calls - (oldest := self.recent[0].count("\n")) >= RECENT:
            self.recent.popleft()
            self.recent_calls -= oldest

    def latest(self) -> list[dict[str, Any]]:
        """The latest calls, oldest first."""
        calls = [orjson.loads(line) for lines in self.recent for line in lines.splitlines()]
        return sorted(calls, key=lambda call: str(call["time"]))[-RECENT:]

    def second(self, name: str) -> list[Any]:
        """The figures of one second; those that have left the window are dropped."""
        if name not in self.seconds:
            self.seconds[name] = [0, 0, {}]
            for old in [old for old in self.seconds if int(old) < int(name) - WINDOW]:
                del self.seconds[old]
        return self.seconds[name]

    def merge(self, other: dict[str, Any]) -> None:
        """Add the figures of another process, as `vars` gives them."""
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
        """Show this process's counts to the others."""
        if self.folder:
            fresh = self.folder / f"{os.getpid()}.fresh"
            fresh.write_bytes(dumped(self.counts))
            fresh.replace(self.folder / f"{os.getpid()}.json")

    def total(self) -> Counts:
        """The sum over all processes; the others' counts are up to a second old."""
        total = Counts()
        total.merge(orjson.loads(dumped(self.counts)))
        for path in self.folder.glob("*.json") if self.folder else ():
            if path.stem != str(os.getpid()):
                total.merge(orjson.loads(path.read_bytes()))
        return total


def dumped(counts: Counts) -> bytes:
    """Counts as JSON."""
    return orjson.dumps(vars(counts) | {"recent": list(counts.recent)}, option=JSON_OPTIONS)


def latency_class(seconds: float) -> int:
    """The number of the class that a latency falls in."""
    if seconds <= FIRST:
        return 0
    return min(CLASSES - 1, math.ceil(math.log2(seconds / FIRST) * PER_OCTAVE))


def upper_end(place: int) -> float:
    """The longest latency in a class, in seconds."""
    return float(FIRST * 2 ** (place / PER_OCTAVE))


def percentiles(classes: Sequence[int], wanted: Iterable[float]) -> list[float | None]:
    """Percentiles of counted latencies in seconds, to within the width of a class; None without any calls."""
    total = sum(classes)
    found: list[float | None] = []
    for percent in wanted:
        rank, place = total * percent / 100, -1
        while total and rank > 0 and place < CLASSES - 1:
            place += 1
            rank -= classes[place]
        found.append(upper_end(max(place, 0)) if total else None)
    return found


def in_classes(places: Iterable[dict[str, int]]) -> list[int]:
    """The latency classes of several seconds, added up."""
    added = [0] * CLASSES
    for second in places:
        for place, calls in second.items():
            added[int(place)] += calls
    return added
