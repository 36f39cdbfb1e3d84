"""A published data set is one that the Hub's viewer reads, which is made of the library `datasets`."""

import datetime
import json
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from services.hub_server import Hub, serving

from free_ml_stack.data import hub_dataset
from free_ml_stack.data.hub_card import viewable
from free_ml_stack.data.ingest import ingest
from free_ml_stack.data.source import Source, from_columns
from free_ml_stack.storage.local import local_store

ROWS = 60
READ = """
import datasets, json, sys
for name in sys.argv[1:]:
    found = datasets.load_dataset(name)
    features = {key: str(kind) for key, kind in found["train"].features.items()}
    row = {key: value if isinstance(value, (int, float, str, list)) else str(value) for key, value in found["train"][0].items()}
    print(json.dumps([{split: rows.num_rows for split, rows in found.items()}, features, row]))
"""


class Science:
    """A data set of every kind of column, with a target of its own."""

    def __init__(self, target: str) -> None:
        self.TARGET = target

    def arrange(self, columns: dict[str, str], target: str) -> dict[str, tuple[str, str]]:
        kinds = {**columns, "name": "category", "grade": "category"}
        return {name: (name, kinds[name]) for name in columns}


def columns(folder: Path) -> dict[str, Any]:
    """Pictures, tensors, texts, classes by name and by number, numbers with gaps, dates."""
    Image.new("RGB", (20, 30), "red").save(folder / "red.png")
    numbers = range(ROWS)
    return {
        "picture": [(folder / "red.png").read_bytes()] * ROWS,
        "tensor": np.arange(ROWS * 12, dtype=np.float32).reshape(ROWS, 2, 2, 3),
        "text": [f"the {number}th" for number in numbers],
        "name": [("a b", "null", "ç")[number % 3] for number in numbers],
        "grade": np.array([number % 4 for number in numbers]),
        "gaps": [None if number % 5 == 0 else number / 2 for number in numbers],
        "day": [datetime.datetime(2026, 1, 1) + datetime.timedelta(number) for number in numbers],
        "raw": [bytes([number]) for number in numbers],
    }


@pytest.mark.slow
def test_the_hubs_own_library_reads_every_kind_of_column(tmp_path: Path) -> None:
    here = fresh.python("datasets", "pillow")
    hub = Hub(tmp_path / "hub")
    names = []
    environ = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_write"}
    with serving(hub) as url, pytest.MonkeyPatch.context() as patch:
        for target in ("name", "grade", "gaps"):
            store = local_store(tmp_path / target)
            source = Source(lambda: {"train": from_columns(columns(tmp_path))}, {"name": "all", "source": "here"})
            ingest(store, source, Science(target), "", 0, tmp_path / "cache")
            publish(patch, hub, url, store, target)
            names.append(f"me/{target}")
        printed = fresh.run(str(here), "-c", READ, *names, folder=tmp_path, HF_ENDPOINT=url, **environ)
    for line, target in zip(printed.splitlines(), ("name", "grade", "gaps"), strict=True):
        rows, features, row = json.loads(line)
        kept = ROWS - (ROWS // 5 if target == "gaps" else 0)
        assert sum(rows.values()) == kept and list(rows) == ["train", "validation", "test"]
        assert features["picture"].startswith("Image(")
        assert features["tensor"] == "List(List(List(Value('float32'))))" and np.shape(row["tensor"]) == (2, 2, 3)
        assert features["day"] == "Value('timestamp[us]')" and features["raw"] == "Value('binary')"
        assert features["gaps"] == "Value('float64')"
        assert (features["name"] == "ClassLabel(names=['a b', 'null', 'ç'])") is (target == "name")
        assert (features["grade"] == "ClassLabel(names=['0', '1', '2', '3'])") is (target == "grade")


def publish(patch: pytest.MonkeyPatch, hub: Hub, url: str, store: Any, target: str) -> None:
    """Publish a data set as `me/<target>` with the real client."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=url, token="hf_write")
    patch.setattr(hub_dataset.hub_client, "client", lambda: api)
    patch.setattr(hub_dataset.hub, "client", lambda: api)
    hub_dataset.publish(f"hf://datasets/me/{target}", store, "tabular-classification", "All kinds")


def test_tensors_become_lists_a_group_of_rows_at_a_time(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 50, dtype=np.uint8).reshape(50, 2, 3)
    table = pa.table({"id": range(50), "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, row_group_size=20)
    viewable(path)
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == 3
        assert str(file.schema_arrow.field("tensor").type).count("fixed_size_list") == 2
        assert np.array_equal(np.array(file.read()["tensor"].to_pylist()), values)
    before = path.read_bytes()
    viewable(path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
