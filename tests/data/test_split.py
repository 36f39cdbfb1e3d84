"""Batches depend on seed and batch number only; batches of texts and bytes are prepared in background threads."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from free_ml_stack.data.split import Cells, Split
from free_ml_stack.training.process import Process


def cells(folder: Path, values: list[bytes | None], text: bool = False) -> Cells:
    ends, at = [], 0
    for value in values:
        at += len(value or b"")
        ends.append(~at if value is None else at)
    (folder / "a.cells").write_bytes(b"".join(value or b"" for value in values))
    np.save(folder / "a.ends.npy", np.array(ends, np.int64))
    return Cells(folder / "a.cells", text)


@pytest.mark.parametrize("values", [[b"a", None, b"", b"bcd", None], [None, b"x"], [None], [b""]])
def test_cells_return_texts_bytes_and_missing_values(tmp_path: Path, values: list[bytes | None]) -> None:
    column = cells(tmp_path, values)
    assert list(column) == values
    assert column[:2] == values[:2]
    assert column[np.array([len(values) - 1, 0])] == [values[-1], values[0]]
    assert column[-1] == values[-1]
    with pytest.raises(IndexError):
        column[len(values)]


def test_a_slice_of_a_split_supports_take(tmp_path: Path) -> None:
    whole = Split({"a": cells(tmp_path, [b"a", None, b"bc"]), "b": np.arange(3)}, {})
    part = Split({name: column[:2] for name, column in whole.items()}, {})
    for split in (whole, part):
        found = split.take([1, 0])
        assert (found["a"], found["b"].tolist()) == ([None, b"a"], [1, 0])


def test_a_text_is_read_as_utf_8(tmp_path: Path) -> None:
    assert list(cells(tmp_path, ["ü…".encode(), None], text=True)) == ["ü…", None]


def prepare(columns: Any, draws: Any) -> dict[str, Any]:
    sizes = np.array([len(value) for value in columns["a"]]) if isinstance(columns["a"], list) else columns["a"]
    return {"size": sizes, "noise": np.zeros(len(sizes)) if draws is None else draws[:, 0]}


def content(split: Split, **options: Any) -> list[tuple[list[float], list[float]]]:
    found = split.batches(range(split.rows), 4, prepare, **options)
    return [(batch["size"].tolist(), batch["noise"].tolist()) for batch in found]


@pytest.mark.parametrize("variable", [False, True])
def test_batches_depend_on_seed_and_number_only(tmp_path: Path, variable: bool) -> None:
    values = [bytes(i) for i in range(18)]
    split = Split({"a": cells(tmp_path, values) if variable else np.arange(18)}, {})
    whole = content(split, seed=(1, 2))
    assert [sizes for sizes, _ in whole] == [list(range(i, min(i + 4, 18))) for i in range(0, 18, 4)]
    assert content(split, seed=(1, 2), first=3) == whole[3:]
    assert content(split, seed=(1, 3)) != whole
    assert {noise for _, row in content(split) for noise in row} == {0.0}
    shares = [content(split, seed=(1, 2), process=Process(torch.device("cpu"), rank, 2)) for rank in (0, 1)]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert (one[0], one[1]) == (batch[0][::2], batch[1][::2])
        assert (other[0], other[1]) == (batch[0][1::2], batch[1][1::2])


def test_encoded_rows_are_prepared_in_threads_and_errors_propagate(tmp_path: Path) -> None:
    split = Split({"a": cells(tmp_path, [b"x"] * 40)}, {})
    seen: list[str] = []

    def look(columns: Any, draws: Any) -> dict[str, Any]:
        seen.append(threading.current_thread().name)
        if len(seen) > 8:
            raise ValueError("not readable")
        return prepare(columns, draws)

    found = split.batches(range(40), 1, look)
    next(found)
    assert all(name.startswith("prepare") for name in seen)
    with pytest.raises(ValueError, match="not readable"):
        list(found)
    assert len(seen) < 40


@pytest.mark.parametrize("kept", [0, 3, 10])
def test_decoded_values_are_those_of_the_files_whatever_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    calls: list[bytes] = []

    def decode(value: bytes) -> Any:
        calls.append(value)
        return np.full((2, 2), value[0], np.uint8)

    monkeypatch.setattr("free_ml_stack.data.split.DECODED_BYTES", kept * 4)
    split = Split({"a": cells(tmp_path, [bytes([i]) for i in range(6)])}, {}).decoded("a", decode)
    calls.clear()
    rng = np.random.default_rng(0)
    for _ in range(4):
        rows = rng.permutation(6)
        found = split.take(rows)["a"]
        assert found[:, 1, 1].tolist() == rows.tolist()
    assert split["a"][-1][0, 0] == 5
    assert split["a"][1:3][:, 0, 0].tolist() == [1, 2]
    whole = min(kept, 6)
    assert sum(value[0] < whole for value in calls) == whole  # each kept row was decoded once
    assert sum(value[0] >= whole for value in calls) >= 4 * (6 - whole)  # the others in each round
    with pytest.raises(IndexError):
        split["a"][6]


def test_batches_of_decoded_values_are_prepared_in_background_threads(tmp_path: Path) -> None:
    threads = set()

    def decode(value: bytes) -> Any:
        threads.add(threading.current_thread().name)
        return np.array(len(value))

    values: list[bytes | None] = [bytes(i) for i in range(40)]
    split = Split({"a": cells(tmp_path, values)}, {}).decoded("a", decode)
    rounds = [[size for sizes, _ in content(split) for size in sizes] for _ in range(2)]
    assert rounds == [list(range(40))] * 2
    assert any(name.startswith("prepare") for name in threads)
