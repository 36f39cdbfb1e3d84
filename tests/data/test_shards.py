"""Splits that stay in the store behind a cache with an upper bound."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from services import hub_server, s3_gateway
from test_dataset import write
from waiting import until

from free_ml_stack.data import dataset
from free_ml_stack.data.ingest import GROUP_ROWS
from free_ml_stack.data.shards import MIX, ShardedColumn, Shards
from free_ml_stack.data.split import Split
from free_ml_stack.errors import StackError
from free_ml_stack.storage.local import local_store

ROWS = 4 * GROUP_ROWS + 100
LIMIT = 2 << 20  # bytes: about two of five shards
COLUMNS = ("image", "label", "text", "file")


def read(folder: Path, limit: int, cache: str = "bounded") -> Split:
    return dataset.read(local_store(folder / "store"), folder / cache, "project", limit)[0]["train"]


def shards_of(split: Split) -> Shards:
    column = split["image"]
    assert isinstance(column, ShardedColumn)
    return column.shards


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "bounded" / "shards").rglob("*") if path.is_file())


def same(one: Any, other: Any) -> bool:
    return bool(one == other if isinstance(one, list) else np.array_equal(one, other) and one.dtype == other.dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shards")
    images = np.random.default_rng(0).integers(0, 255, (ROWS, 8, 8), np.uint8)
    texts = [f"text {row}" if row % 5 else None for row in range(ROWS)]
    columns = {"image": images, "text": texts, "file": [bytes([row % 256]) * 4 for row in range(ROWS)]}
    write(local_store(made / "store"), made, label=np.arange(ROWS), **columns)
    return made


def test_rows_are_those_of_the_whole_copy(folder: Path) -> None:
    whole, bounded = read(folder, 0, "whole"), read(folder, LIMIT)
    assert isinstance(whole["image"], np.ndarray)
    assert whole.rows == bounded.rows == len(bounded["image"]) == ROWS
    assert isinstance(bounded["label"], np.ndarray)  # a number is small, and stays on the disk
    chosen = np.random.default_rng(1).integers(0, ROWS, 300)
    for rows in (chosen, chosen[:0], chosen - ROWS, list(chosen[:3])):
        one, other = whole.take(rows), bounded.take(rows)
        assert all(same(one[name], other[name]) for name in COLUMNS)
    for at in (0, -1, GROUP_ROWS - 1, GROUP_ROWS, slice(GROUP_ROWS - 2, GROUP_ROWS + 2), slice(None, None, -9999)):
        assert np.array_equal(whole["image"][at], bounded["image"][at])
        assert whole["text"][at] == bounded["text"][at]
    mask = np.arange(ROWS) % 9999 == 0
    assert np.array_equal(whole["image"][mask], bounded["image"][mask])
    with pytest.raises(IndexError):
        bounded["image"][ROWS]


def test_an_epoch_fetches_each_shard_once_within_the_limit(folder: Path) -> None:
    split = read(folder, LIMIT)
    shards, sizes = shards_of(split), []
    rows = split.order(np.random.default_rng(3))
    assert np.array_equal(np.sort(rows), np.arange(ROWS))
    assert np.array_equal(split.decoded("image", np.asarray).order(np.random.default_rng(3)), rows)
    assert len(np.unique(rows[:5000] // GROUP_ROWS)) <= MIX < len(shards.ends)
    fetch, fetched = shards.fetch, []
    shards.fetch = lambda number, place: fetched.append(number) or fetch(number, place)  # type: ignore[func-returns-value]
    seen = []
    for batch in split.batches(rows, 512, lambda columns, _: {"label": columns["label"], "image": columns["image"]}):
        seen.append(batch["label"].numpy())
        sizes.append(size(folder))
    assert np.array_equal(np.concatenate(seen), split["label"][rows])
    assert 2 <= len(fetched) <= len(shards.ends)
    assert max(sizes) <= LIMIT + (2 << 20)  # a shard for each thread that reads ahead


@pytest.mark.parametrize("height", [8, 9])
def test_a_data_set_that_is_replaced_meanwhile_is_reported(tmp_path: Path, height: int) -> None:
    columns = {"label": np.arange(2 * GROUP_ROWS), "image": np.zeros((2 * GROUP_ROWS, 8, 8), np.uint8)}
    write(local_store(tmp_path / "store"), tmp_path, **columns)
    split = read(tmp_path, 1)
    assert not split["image"][0].any()
    write(
        local_store(tmp_path / "store"), tmp_path, **columns | {"image": np.ones((2 * GROUP_ROWS, height, 8), np.uint8)}
    )
    with pytest.raises(StackError, match="the data set in the store was replaced while it was in use"):
        _ = split["image"][-1]
    assert read(tmp_path, 1)["image"][-1].all()


def test_a_later_start_gives_the_same_batches(folder: Path) -> None:
    def batches(first: int) -> list[list[Any]]:
        split = read(folder, LIMIT)
        rows = split.order(np.random.default_rng((5, 1)))
        found = split.batches(rows, 4096, prepare, None, (5, 1), first)
        return [[batch["image"].numpy().tolist(), batch["draws"].numpy().tolist()] for batch in found]

    def prepare(columns: Any, draws: Any) -> dict[str, Any]:
        return {"image": columns["image"][:3], "draws": draws[:3]}

    assert batches(0)[5:] == batches(5)


def test_readers_share_a_cache_that_is_damaged_and_removed_meanwhile(folder: Path) -> None:
    root, stop = folder / "bounded" / "shards", threading.Event()
    stale = root / ".stale"
    root.mkdir(parents=True, exist_ok=True)
    stale.mkdir()
    os.utime(stale, (0, 0))

    def damage() -> None:
        while not stop.wait(0.001):
            for path in root.glob("[!.]*"):
                (path / "0.npy").unlink(missing_ok=True)

    def epoch(seed: int) -> bool:
        split = read(folder, LIMIT)
        rows = np.random.default_rng(seed).permutation(ROWS)[:2000]
        return np.array_equal(split["image"][rows], expected[rows])

    expected = np.array(read(folder, 0, "whole")["image"])
    with ThreadPoolExecutor(4) as pool:
        damaged = pool.submit(damage)
        try:
            results = list(pool.map(epoch, range(3)))
        finally:
            stop.set()
        damaged.result()
    assert all(results)
    assert not stale.exists()


@pytest.mark.slow
def test_a_project_trains_and_publishes_with_a_bounded_cache(data: Path, tmp_path: Path) -> None:
    project = projects.make(tmp_path / "project", data)
    projects.run(project, "train", "--epochs", "1", "--name", "a", STACK_CACHE_BYTES="1000")
    projects.run(project, "publish", STACK_CACHE_BYTES="1000")
    assert list((project / ".stack" / "cache" / "shards").iterdir())
    assert "cache_bytes: expected 0 or more, got -1" in projects.run(project, "info", code=1, STACK_CACHE_BYTES="-1")


@pytest.fixture(params=["hf://buckets/me/store", "s3://bucket/store"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a service with a store that a project may use."""
    if request.param.startswith("hf:"):
        with hub_server.serving(hub_server.Hub(tmp_path / "hub")) as url:
            yield {"STACK_STORAGE": request.param, "HF_ENDPOINT": url, "HF_TOKEN": "hf_write"}
    else:
        with s3_gateway.serving(s3_gateway.Gateway("me")) as url:
            yield {"STACK_STORAGE": request.param, "AWS_ENDPOINT_URL": url, **s3_gateway.ENVIRON}


@pytest.mark.slow
def test_killed_training_resumes_with_shards_of_a_service(service: dict[str, str], tmp_path: Path) -> None:
    digits = np.random.default_rng(0).integers(0, 16, (ROWS, 64), np.uint8)
    table = {
        "image": pa.array(digits.reshape(-1, 8, 8).tolist(), pa.list_(pa.list_(pa.uint8()))),
        "label": digits[:, 0] % 10,
    }
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "stack.toml").write_text('project = "skeleton"\nalgorithm = "me/Skeleton"\n')
    pq.write_table(pa.table(table), folder / "own.parquet")
    environ = {**service, "STACK_CACHE_BYTES": "1000000"}  # of 2.1 MB in five shards
    projects.run(folder, "data", "--from", "own.parquet", **environ)
    train = ("train", "--epochs", "2", "--batch-size", "512", "--checkpoint-steps", "5", "--width", "4")
    with projects.start(folder, *train, "--name", "killed", **environ) as running:
        until(lambda: list(folder.glob("runs/killed/checkpoints/step-*/state.json")) or running.poll() is not None)
        running.kill()
        assert running.wait(60) == -signal.SIGKILL, running.communicate()
    shutil.rmtree(folder / ".stack" / "cache")  # the run continues on another machine
    assert "Resuming after step" in projects.run(folder, *train, "--name", "killed", **environ)
    projects.run(folder, *train, "--name", "whole", **environ)
    weights = [(folder / "runs" / name / "model" / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    shards = folder / ".stack" / "cache" / "shards"
    assert 0 < sum(path.stat().st_size for path in shards.rglob("*") if path.is_file()) < 1_600_000
