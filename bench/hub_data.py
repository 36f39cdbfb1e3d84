"""Memory and throughput of importing a large data set from a loopback Hub into the store.

    python bench/hub_data.py [--gigabytes 10] [--folder FOLDER]

The shards are incompressible noise; FOLDER needs space for them. Memory is the peak of a separate process, measured
with one shard and with all: the difference is the growth with the data.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import places
from services.hub_server import Hub, serving

ROWS, SIDE = 65_536, 32  # of a shard of 64 MiB
LIMIT = 1024  # MiB
FETCH = """
import re, sys
from pathlib import Path
from free_ml_stack.data.hub_dataset import from_hub
from free_ml_stack.data.ingest import ingest
from free_ml_stack.storage.local import local_store
class data:
    TARGET = "label"
    def arrange(columns, target):
        return {name: (name, kind) for name, kind in columns.items()}
folder = Path(sys.argv[2])
made = ingest(local_store(folder), from_hub(sys.argv[1]), data, "", 0, folder / "scratch")
size = sum(entry["size"] for entry in made["files"].values())
print(size, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def main() -> None:
    """Measure both and print the table; exit with code 1 if memory exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        hub = Hub(Path(scratch, "hub"))
        shard = noise()
        count = max(2, round(args.gigabytes * 1e9 / len(shard)))
        with serving(hub):
            rows = [measure(hub, Path(scratch), shard, shards) for shards in (1, count)]
    print(f"{'shards':>8} {'GB':>8} {'MiB peak':>9} {'MB/s':>8}")
    for shards, size, peak, seconds in rows:
        print(f"{shards:8} {size / 1e9:8.2f} {peak:9.0f} {size / 1e6 / seconds:8.0f}")
    sys.exit(rows[-1][2] > LIMIT)


def noise() -> bytes:
    """Write a Parquet file of random images."""
    images = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE), dtype=np.uint8)
    sink = pa.BufferOutputStream()
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    pq.write_table(pa.table({"image": pixels, "label": pa.array(np.arange(ROWS))}), sink)
    return bytes(sink.getvalue())


def measure(hub: Hub, folder: Path, shard: bytes, shards: int) -> tuple[int, int, float, float]:
    """Return shards, bytes written, peak in MiB, and seconds of one import."""
    splits = ["validation", "test", *(f"train-{number:05}" for number in range(shards))]
    hub.put("dataset", f"me/noise-{shards}", {f"{split}.parquet": shard for split in splits})
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_write"}
    environ |= {"PYTHONPATH": str(places.SOURCE), "HF_HOME": str(folder / "home")}
    command = [
        sys.executable,
        "-c",
        FETCH,
        f"hf://datasets/me/noise-{shards}",
        str(folder / f"store-{shards}"),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    return shards, size, peak / 1024, time.perf_counter() - started


if __name__ == "__main__":
    main()
