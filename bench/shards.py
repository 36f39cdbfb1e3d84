"""Batches of encoded images behind a bounded cache, once warm, beside those of a whole copy on the disk.

    python bench/shards.py [--images 12000]

The store is a gateway on loopback. The cache is 2 % smaller than the data, so an epoch fetches some shards again.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.dirfs import DirFileSystem
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from serving import serving
from storing import data_app

from free_ml_stack.data import dataset
from free_ml_stack.data.ingest import ingest
from free_ml_stack.data.source import Source, from_columns
from free_ml_stack.gateway.protocol.direct import DirectProtocol
from free_ml_stack.storage.local import local_store

PROMISED, SIDE, BATCH, EPOCHS = 0.9, 64, 256, 4


class Science:
    TARGET = "label"

    def arrange(self, columns, target):
        return {name: (name, kind) for name, kind in columns.items()}


def picture(rng):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def prepare(columns, draws):
    images = [np.asarray(Image.open(io.BytesIO(one))) for one in columns["image"]]
    return {"image": np.stack(images), "label": columns["label"]}


def rate(split, bounded):
    """Images a second: the best of some epochs after the first, which fills the cache."""
    rates = []
    for epoch in range(EPOCHS):
        rows = bounded.order(np.random.default_rng(epoch))
        start = time.perf_counter()
        for _ in split.batches(rows, BATCH, prepare):
            pass
        rates.append(len(rows) / (time.perf_counter() - start))
    return max(rates[1:])


def main():
    """Measure both and print the table; exit with 1 if the ratio is below the promised one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as scratch:
        root, rng = Path(scratch), np.random.default_rng(0)
        rows = from_columns({"label": np.arange(count), "image": [picture(rng) for _ in range(count)]})
        few = from_columns({"label": np.arange(4), "image": [picture(rng) for _ in range(4)]})
        splits = {"train": rows, "validation": few, "test": few}
        source = Source(lambda: splits, {"name": "noise"})
        made = ingest(local_store(root / "me" / "p", root), source, Science(), "", 0, root / "scratch")
        total = sum(entry["size"] for entry in made["files"].values())
        with serving(data_app(root), http=DirectProtocol) as url:
            files = fsspec.filesystem("algorithmia", api_address=url, api_key="key-of-me")
            store = DirFileSystem(".my/p", fs=files)
            bounded = dataset.read(store, root / "bounded", "p", int(total * 0.98))[0]["train"]
            whole = dataset.read(store, root / "whole", "p")[0]["train"]
            rates = [rate(split, bounded) for split in (whole, bounded)]
    ratio = rates[1] / rates[0]
    print(f"{total / 1e6:.0f} MB; images a second: whole copy {rates[0]:.0f}, bounded cache {rates[1]:.0f}")
    print(f"{ratio:.2f} x the speed of a whole copy")
    sys.exit(ratio < PROMISED)


if __name__ == "__main__":
    main()
