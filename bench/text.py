"""Steps per second of text-classification's `train`, with record and checkpoints, relative to transformers' Trainer.

    python bench/text.py [--quick]

Both train the same encoder with the same frozen layers on the same texts, with each batch padded to its longest text,
in one thread of a separate process; the ratio is the median of alternating rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "build" / "src")]
PROMISED = 1.0


def splits(scratch: str) -> Any:
    """Return the splits of the embedded data set."""
    from skeleton_text_classification import data

    from free_ml_stack.data import dataset
    from free_ml_stack.data.ingest import ingest
    from free_ml_stack.data.source import Source, from_columns
    from free_ml_stack.storage.local import local_store

    store = local_store(Path(scratch, "store"))
    source = Source(lambda: {"train": from_columns(data.fetch())}, {"name": "topics", "source": ""})
    ingest(store, source, data, "", 0, Path(scratch))
    return dataset.read(store, Path(scratch, "cache"), "")[0]


def ours(epochs: int) -> tuple[float, int]:
    """Return seconds and steps of the project's loop, with validation after each epoch."""
    from skeleton_text_classification import train
    from skeleton_text_classification.config import TrainConfig

    from free_ml_stack.tracking.run import Run
    from free_ml_stack.tracking.tracker import Tracker
    from free_ml_stack.training.checkpoint import Checkpoints
    from free_ml_stack.training.process import Process, choose_device

    config = TrainConfig(epochs=epochs)
    with tempfile.TemporaryDirectory() as scratch:
        found = splits(scratch)
        run = Run("bench", Path(scratch, "run"), Tracker())
        checkpoints = Checkpoints(Path(scratch, "checkpoints"), run.record, vars(config), config.checkpoint_seconds)
        started = time.perf_counter()
        train.fit(config, found, run, checkpoints, Process(choose_device("cpu")))
        return time.perf_counter() - started, checkpoints.at.step


def trainer(epochs: int) -> tuple[float, int]:
    """Return seconds and steps of transformers' Trainer with its defaults and evaluation after each epoch."""
    import numpy as np
    from skeleton_text_classification.config import TrainConfig
    from skeleton_text_classification.data import prepare
    from skeleton_text_classification.model import build
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    config = TrainConfig()
    with tempfile.TemporaryDirectory() as scratch:
        found = splits(scratch)

        def rows(name: str) -> list[dict[str, Any]]:
            split = found[name]
            each = [prepare(config, split.facts, split.take([row]), None) for row in range(split.rows)]
            return [{key.replace("label", "labels"): values[0] for key, values in one.items()} for one in each]

        arguments = TrainingArguments(
            scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            learning_rate=config.lr,
            eval_strategy="epoch",
            save_strategy="no",
            dataloader_drop_last=True,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        tokenized = {"train_dataset": rows("train"), "eval_dataset": rows("validation")}
        started = time.perf_counter()
        model = build(config, found["train"].facts)
        made = Trainer(model, arguments, DataCollatorWithPadding(model.tokenizer), **tokenized)
        made.train()
        assert np.isfinite(made.state.log_history[-1]["train_loss"])
        return time.perf_counter() - started, made.state.global_step


CONTENDERS = {"ours": ours, "trainer": trainer}


def speed(contender: str, epochs: int) -> float:
    """Return the steps per second of a contender, in a separate process."""
    command = [sys.executable, __file__, "--one", contender, str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, steps = json.loads(done.stdout.splitlines()[-1])
    return float(steps / seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "EPOCHS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    import places  # noqa: F401 - makes the science importable

    if args.one:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(CONTENDERS[args.one[0]](int(args.one[1]))))
        return
    rounds = [{one: speed(one, 2) for one in CONTENDERS} for _ in range(1 if args.quick else 3)]
    print(f"{'contender':10} {'steps/s':>8} {'ratio':>6}  target")
    for one in CONTENDERS:
        steps = statistics.median(speeds[one] for speeds in rounds)
        ratio = statistics.median(speeds[one] / speeds["trainer"] for speeds in rounds)
        print(f"{one:10} {steps:8.2f} {ratio:6.2f}  {f'{PROMISED} or more' if one == 'ours' else ''}")


if __name__ == "__main__":
    main()
