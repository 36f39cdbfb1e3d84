"""One training run from data to weights: opens what the loop needs, and keeps what comes of it."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file

from . import StackError, dataset, evaluation, provenance
from .checkpoint import Checkpoints
from .process import Process, join
from .storage import open_store
from .tracking import Tracker, Untracked, open_run

if TYPE_CHECKING:
    from .dataset import Split
    from .science import Science
    from .settings import Settings

RESULT, WEIGHTS, PREDICTIONS, LATEST = "result.json", "model.safetensors", "predictions.npz", "latest"


def train(
    science: "Science",
    config: Any,
    settings: "Settings",
    run_id: str = "",
    folder: Path | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Train with `config` and return the run's result, as written to `<folder>/result.json`.

    `run_id` names a run to go on with; without it a new one starts. `folder` is where runs are kept,
    `tracker` follows the run instead of the configured one.
    """
    runs = folder or settings.runs
    with join(settings, config.device, config.threads) as process:
        run_id = process.agree(run_id or new_id())
        if process.first:
            splits, facts = _data(settings)
        process.agree("")
        if not process.first:
            splits, facts = _data(settings)
        if not process.first:
            tracker = Untracked()
        result = _train(science, config, settings, process, runs / run_id, splits, facts, tracker)
    if process.first and folder is None:
        (runs / LATEST).write_text(run_id, encoding="utf-8")
    return result


def _data(settings: "Settings") -> tuple[dict[str, "Split"], dict[str, Any]]:
    store = open_store(settings.storage, settings)
    return dataset.read(store, settings.private / "cache", settings.command)


def _train(
    science: "Science",
    config: Any,
    settings: "Settings",
    process: Process,
    folder: Path,
    splits: Mapping[str, "Split"],
    facts: dict[str, Any],
    tracker: Tracker | None,
) -> dict[str, Any]:
    values = asdict(config)
    about = {**values, "data": dataset.fingerprint(facts)}
    run = open_run(settings, folder.name, "train", folder, about, tracker)
    checkpoints = Checkpoints(
        folder / "checkpoints", run.record, values, config.checkpoint_seconds, config.checkpoint_steps
    )
    started = time.perf_counter()
    try:
        model = science.train.fit(config, splits, run, checkpoints, process)
    except BaseException:
        run.finish(exit_code=1)
        raise
    seconds = time.perf_counter() - started
    outputs = {name: science.train.predict(model, splits[name]).numpy() for name in ("validation", "test")}
    labels = {name: splits[name]["label"].cpu().numpy().astype(np.int64) for name in outputs}
    scores = {name: evaluation.metrics(evaluation.softmax(outputs[name]), labels[name]) for name in outputs}
    result = {
        "run": folder.name,
        "config": values,
        "test": scores["test"],
        "validation": scores["validation"],
        "data": {"name": science.data.NAME, "sha256": dataset.fingerprint(facts), "rows": facts["rows"]},
        "steps": checkpoints.at.step,
        "seconds": round(seconds, 3),
        "processes": process.size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "commit": provenance.commit(settings.root),
        "environment": provenance.environment(),
        "machine": provenance.machine(str(process.device)),
    }
    if process.first:
        save_file(model.state_dict(), folder / WEIGHTS)
        np.savez(folder / PREDICTIONS, validation_logits=outputs["validation"], test_logits=outputs["test"])
        (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
        run.summary(**{f"{split}_{name}": value for split in scores for name, value in scores[split].items()})
        result["tracked"] = run.finish()
    return result


def find_run(settings: "Settings", run_id: str = "") -> Path:
    """The folder of a finished run, the latest by default; StackError if there is none."""
    latest = settings.runs / LATEST
    if not run_id and not latest.exists():
        raise StackError(f"no trained model yet: run `{settings.command} train`")
    folder = settings.runs / (run_id or latest.read_text(encoding="utf-8"))
    if not (folder / RESULT).exists():
        raise StackError(f"{folder.name} is no finished run; see {settings.runs}")
    return folder


def new_id() -> str:
    """An id for a run: when it started, and four characters of chance."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
