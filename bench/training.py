"""Steps per second of `train`, with logging and checkpoints, relative to a plain PyTorch loop, LightGBM's, and peers.

    python bench/training.py [--quick] [--models MODEL …]

Each contender trains the same model on the same data with the same number of threads in a separate process; the ratio
is relative to the plain loop with a DataLoader, or to LightGBM's loop, as the median of alternating rounds. Peers that
are not installed get an environment in build/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "build" / "src")]
MODELS = {"cnn": 1.15, "mlp": 1.5, "wide": 0.97, "trees": 0.95, "jpegs": 1.2}  # with target ratios
STEPS = {"cnn": 30, "mlp": 60, "wide": 2, "trees": 300, "jpegs": 6}  # epochs, or rounds of boosting
THREADS = {
    "cnn": 1,
    "mlp": 1,
    "wide": 2,
    "trees": 1,
    "jpegs": 1,
}  # of all contenders; two threads slow down a small model on shared cores
PEERS = ("accelerate", "lightning", "transformers", "skorch")
BATCH = 64
# A network that takes less time than decoding its images, as a large one on a GPU.
SMALL: dict[str, int] = {"size": 32, "width": 8, "hidden": 32}


def model(name: str) -> Any:
    """Return the network of a contest: the digits CNN, a small MLP, or a large MLP."""
    from digits import FACTS
    from skeleton.config import TrainConfig
    from skeleton.model import build
    from torch import nn

    if name == "cnn":
        return build(TrainConfig(), FACTS)
    if name == "wide":
        return build(TrainConfig(width=128, hidden=512), FACTS)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Flatten(),
                nn.Linear(64, 128),
                nn.ReLU(),
                nn.Linear(128, 128),
                nn.ReLU(),
                nn.Linear(128, 10),
            )

        def forward(self, image: Any) -> Any:
            return self.net(image.float() / 16)

    return Scaled()


def data() -> tuple[Any, Any]:
    """Return training images and labels as tensors."""
    import torch

    found = columns("train")
    return torch.from_numpy(found["image"]), torch.from_numpy(found["label"]).long()


def columns(split: str) -> dict[str, Any]:
    """Return the columns of a split as in the project."""
    from skeleton.data import fetch

    from free_ml_stack.data.ingest import stratified_split

    arrays = fetch()
    return {name: values[stratified_split(arrays["label"], 0)[split]] for name, values in arrays.items()}


def ours(name: str, epochs: int) -> tuple[float, int]:
    """Return seconds and steps of the project's loop, with its record and checkpoints."""
    import skeleton.data
    import skeleton.train as science
    import torch
    from skeleton.config import TrainConfig

    science.build = lambda config, facts: model(name)  # type: ignore[assignment]
    torch.set_num_threads(THREADS[name])
    return fitted(science, skeleton.data, TrainConfig(epochs=epochs, patience=0, shift=0))


def fitted(science: Any, data: Any, config: Any) -> tuple[float, int]:
    """Return seconds and steps of a task's loop on its embedded data."""
    from free_ml_stack.data import dataset
    from free_ml_stack.data.ingest import ingest
    from free_ml_stack.data.source import Source, from_columns
    from free_ml_stack.storage.local import local_store
    from free_ml_stack.tracking.run import Run
    from free_ml_stack.tracking.tracker import Tracker
    from free_ml_stack.training.checkpoint import Checkpoints
    from free_ml_stack.training.process import Process, choose_device

    with tempfile.TemporaryDirectory() as scratch:
        store = local_store(Path(scratch, "store"))
        source = Source(lambda: {"train": from_columns(data.fetch())}, {"name": data.NAME, "source": ""})
        ingest(store, source, data, "", 0, Path(scratch))
        splits, _ = dataset.read(store, Path(scratch, "cache"), "")
        run = Run("bench", Path(scratch, "run"), Tracker())
        checkpoints = Checkpoints(Path(scratch, "checkpoints"), run.record, vars(config), config.checkpoint_seconds)
        started = time.perf_counter()
        science.fit(config, splits, run, checkpoints, Process(choose_device("cpu")))
        return time.perf_counter() - started, checkpoints.at.step


def boosted(name: str, rounds: int) -> tuple[float, int]:
    """Run the loop of the tabular task, with its record and checkpoints."""
    from skeleton_tabular_regression import data, train
    from skeleton_tabular_regression.config import TrainConfig

    return fitted(train, data, TrainConfig(rounds=rounds, patience=0))


def jpegs() -> Any:
    """Return a table of 1,600 JPEG files of 500 x 400 pixels, digits on a textured background, and their labels."""
    from io import BytesIO

    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from skeleton.data import fetch

    digits, rng = fetch(), np.random.default_rng(0)
    files = []
    for digit in digits["image"][:1600]:
        ground = Image.fromarray(rng.integers(0, 256, (50, 62, 3), dtype=np.uint8)).resize((500, 400))
        ground.paste(Image.fromarray(digit * 15).resize((300, 300)), (100, 50))
        ground.save(file := BytesIO(), "JPEG", quality=85)
        files.append(file.getvalue())
    return pa.table({"image": files, "label": digits["label"][:1600]})


def decoded(name: str, epochs: int) -> tuple[float, int]:
    """Run the loop of the image task, which decodes each batch in threads, with its record and checkpoints."""
    from types import SimpleNamespace

    import skeleton.data
    from skeleton import train
    from skeleton.config import TrainConfig

    data = SimpleNamespace(**{**vars(skeleton.data), "fetch": jpegs, "NAME": "jpegs"})
    return fitted(train, data, TrainConfig(epochs=epochs, patience=0, shift=0, **SMALL))


def loaded(name: str, epochs: int) -> tuple[float, int]:
    """Run the plain loop with a DataLoader of two persistent workers that decode as the project does."""
    import torch
    from skeleton.config import TrainConfig
    from skeleton.model import build
    from skeleton.predict import pixels
    from torch.utils.data import DataLoader, Dataset

    from free_ml_stack.data.ingest import stratified_split

    table = jpegs()
    files, labels = table["image"].to_pylist(), table["label"].to_numpy().astype(int)
    rows = stratified_split(labels, 0)

    class Files(Dataset[Any]):
        def __init__(self, split: str) -> None:
            self.rows = rows[split]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, place: int) -> Any:
            row = self.rows[place]
            return torch.from_numpy(pixels(files[row], [SMALL["size"], SMALL["size"], 3]).copy()), int(labels[row])

    workers: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    loader = DataLoader(Files("train"), BATCH, shuffle=True, drop_last=True, **workers)
    test = DataLoader(Files("validation"), 256, **workers)
    facts = {"columns": {"image": {"type": "bytes"}, "label": {"type": "category", "categories": list(range(10))}}}
    return plain_loop(build(TrainConfig(**SMALL), facts), loader, test, epochs)


def lightgbm(name: str, rounds: int) -> tuple[float, int]:
    """Run LightGBM's loop as in its guide: a validation set, early stopping, a line every ten rounds."""
    import lightgbm as lgb
    import numpy as np
    from skeleton_tabular_regression import data, model
    from skeleton_tabular_regression.config import TrainConfig

    from free_ml_stack.data.ingest import stratified_split

    table = data.fetch()
    target = table.column(data.TARGET).to_numpy()
    others = [table.column(name).combine_chunks() for name in table.column_names if name != data.TARGET]
    texts = [place for place, column in enumerate(others) if str(column.type) == "string"]
    coded = [np.unique(column.to_numpy(False), return_inverse=True)[1] if place in texts else column.to_numpy()
             for place, column in enumerate(others)]  # fmt: skip
    features = np.stack(coded, axis=1).astype(np.float32)
    rows = stratified_split(np.zeros(len(target), int), 0)
    parameters = {"objective": "regression", "metric": "rmse", **model.settings(TrainConfig())}
    started = time.perf_counter()
    train = lgb.Dataset(features[rows["train"]], target[rows["train"]], categorical_feature=texts)
    held_out = train.create_valid(features[rows["validation"]], target[rows["validation"]])
    calls = [lgb.early_stopping(rounds, verbose=False), lgb.log_evaluation(10)]
    trees = lgb.train(parameters, train, rounds, valid_sets=[held_out], callbacks=calls)
    return time.perf_counter() - started, trees.current_iteration()


def bare(name: str, epochs: int) -> tuple[float, int]:
    """Run the plain loop on tensors."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    held = columns("validation")
    loader = DataLoader(TensorDataset(*data()), BATCH, shuffle=True, drop_last=True)
    images, labels = torch.from_numpy(held["image"]), torch.from_numpy(held["label"]).long()
    return plain_loop(model(name), loader, DataLoader(TensorDataset(images, labels), 512), epochs)


def plain_loop(net: Any, loader: Any, test: Any, epochs: int) -> tuple[float, int]:
    """Run the loop of PyTorch's tutorials: AdamW, a loss read every ten steps, validation after each epoch."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(net.parameters(), 0.006, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.006, total_steps=epochs * len(loader))
    started, steps = time.perf_counter(), 0
    for _ in range(epochs):
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y, label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
            steps += 1
            if steps % 10 == 0:
                loss.item()
        net.eval()
        with torch.no_grad():
            for x, y in test:
                cross_entropy(net(x), y).item()
    return time.perf_counter() - started, steps


def accelerate(name: str, epochs: int) -> tuple[float, int]:
    """Run the plain loop with Hugging Face Accelerate."""
    import torch
    from accelerate import Accelerator
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True)
    net = model(name)
    optimizer = torch.optim.AdamW(net.parameters(), 0.006, weight_decay=0.05)
    loader = DataLoader(TensorDataset(*data()), BATCH, shuffle=True, drop_last=True)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    started, steps = time.perf_counter(), 0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(net(x), y, label_smoothing=0.05))
            optimizer.step()
            steps += 1
    return time.perf_counter() - started, steps


def lightning(name: str, epochs: int) -> tuple[float, int]:
    """Run Lightning's Trainer with its defaults, without the progress bar."""
    import lightning as pl
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model(name)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = cross_entropy(self.net(batch[0]), batch[1], label_smoothing=0.05)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 0.006, weight_decay=0.05)

    loader = DataLoader(TensorDataset(*data()), BATCH, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=scratch, enable_progress_bar=False)
        started = time.perf_counter()
        trainer.fit(Module(), loader)
        return time.perf_counter() - started, trainer.global_step


def transformers(name: str, epochs: int) -> tuple[float, int]:
    """Run transformers' Trainer with its defaults."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainingArguments

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model(name)

        def forward(self, image: Any, labels: Any) -> Any:
            logits = self.net(image)
            return {"loss": cross_entropy(logits, labels, label_smoothing=0.05), "logits": logits}

    class Digits(Dataset[Any]):
        images, labels = data()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, row: int) -> Any:
            return {"image": self.images[row], "labels": self.labels[row]}

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            dataloader_drop_last=True,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(Net(), arguments, train_dataset=Digits())
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started, trainer.state.global_step


def skorch(name: str, epochs: int) -> tuple[float, int]:
    """Run skorch's classifier with its defaults."""
    import torch
    from skorch import NeuralNetClassifier

    images, labels = data()
    net = NeuralNetClassifier(
        model(name),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=epochs,
        batch_size=BATCH,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
        iterator_train__drop_last=True,
    )
    started = time.perf_counter()
    net.fit(images.float(), labels)
    return time.perf_counter() - started, epochs * (len(labels) // BATCH)


CONTENDERS: dict[str, Callable[[str, int], tuple[float, int]]] = {
    f.__name__: f for f in (bare, ours, accelerate, lightning, transformers, skorch, lightgbm, boosted, loaded, decoded)
}
OTHERS = {
    "trees": ("lightgbm", "boosted"),
    "jpegs": ("loaded", "decoded"),
}  # the second is compared with the first
OF_NETS = ("bare", "ours", *PEERS)


def peers() -> Path:
    """Return the interpreter of the peers' environment, created once."""
    python = ROOT / "build" / "peers" / "bin" / "python"
    if not python.exists():
        environment = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        command = ["uv", "pip", "install", "--quiet", "--python", str(python), "torch>=2.8,<2.14", *PEERS]
        needs = ["scikit-learn", "--editable", str(ROOT)]
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(python.parents[1])], check=True)
        subprocess.run([*command[:7], *PEERS, *needs], check=True, env=environment)
    return python


def speed(contender: str, name: str, epochs: int) -> float:
    """Return the steps per second of a contender, in a separate process."""
    python = str(peers()) if contender in PEERS else sys.executable
    command = [python, __file__, "--one", contender, name, str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS[name])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, steps = json.loads(done.stdout.splitlines()[-1])
    return float(steps / seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only ours and the plain loop, once")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "MODEL", "EPOCHS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        contender, name, epochs = CONTENDERS[args.one[0]], args.one[1], int(args.one[2])
        contender(name, 1)  # one-time loading and compilation are not part of a step
        print(json.dumps(contender(name, epochs)))
        return
    from places import link_skeletons

    link_skeletons()
    print(f"{'model':6} {'contender':14} {'steps/s':>8} {'ratio':>6}  target")
    for name in args.models:
        promised = MODELS[name]
        epochs = STEPS[name] // (2 if args.quick else 1)
        contenders = OTHERS.get(name) or (OF_NETS[:2] if args.quick else OF_NETS)
        # Alternating, so that other load of the machine affects all contenders.
        rounds = [{one: speed(one, name, epochs) for one in contenders} for _ in range(1 if args.quick else 5)]
        for one in contenders:
            steps = statistics.median(speeds[one] for speeds in rounds)
            ratio = statistics.median(speeds[one] / speeds[contenders[0]] for speeds in rounds)
            goal = f"{promised} or more" if one in ("ours", "boosted", "decoded") else ""
            print(f"{name:6} {one:14} {steps:8.1f} {ratio:6.2f}  {goal}", flush=True)


if __name__ == "__main__":
    main()
