"""Moods of notes: warmth and loudness of a note with a length."""

from typing import Any

import numpy as np

NAME, SOURCE, LICENSE, TARGET = "moods", "made here", "cc0-1.0", "mood"
WORDS = ("sun", "rain", "drum", "hush", "sea", "dust")


def fetch() -> dict[str, Any]:
    """Notes, their length, and their mood (n, 2)."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (300, len(WORDS)))
    notes = [" ".join(word for word, count in zip(WORDS, row, strict=True) for _ in range(count)) for row in counts]
    weights = np.array([[2, 0], [-1, 0], [0, 2], [0, -2], [0.5, 0.5], [0, 0]])
    mood = counts @ weights + rng.normal(0, 0.1, (300, 2))
    return {"note": [note or None for note in notes], "length": counts.sum(1).astype(float), "mood": mood}


def arrange(columns: dict[str, str], target: str) -> dict[str, tuple[str, str]]:
    """Return all columns unchanged."""
    return {name: (name, kind) for name, kind in columns.items()}


def features(notes: list[str | None], lengths: Any) -> Any:
    """Return word counts, the length, and one: (n, 8), float32."""
    counts = [[(note or "").split().count(word) for word in WORDS] for note in notes]
    return np.column_stack((counts, lengths, np.ones(len(notes)))).astype(np.float32)


def prepare(config: Any, facts: Any, columns: Any, draws: Any) -> dict[str, Any]:
    """Features and moods of some rows."""
    return {"features": features(columns["note"], columns["length"]), "mood": columns["mood"]}


def example(columns: Any, row: int) -> Any:
    """A note and its length."""
    return {"note": columns["note"][row], "length": float(columns["length"][row])}
