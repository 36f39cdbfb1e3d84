"""The model folder: weights, ONNX export, card, metrics and sample of a trained model."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import numpy as np

from free_ml_stack.data import dataset
from free_ml_stack.errors import StackError, one_line
from free_ml_stack.evaluation.drift import reference
from free_ml_stack.hub.card import card, edited_sections, escape_markdown, merge_sections, read_card
from free_ml_stack.hub.usage import NOTEBOOK, copy_code, notebook
from free_ml_stack.project.flags import read
from free_ml_stack.project.settings import FILE
from free_ml_stack.storage.documents import as_json, json_round_trip
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking import provenance
from free_ml_stack.training.outcome import EVALUATION, MODEL, PICTURES, RESULT, model_sums

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

ONNX, CARD = "model.onnx", "README.md"
TOLERANCE = 1e-4
REFERENCE_ROWS = 5000  # maximum number of training examples in the drift reference
BATCH = 64  # examples per call of apply_batch
ROWS = 100  # test examples for the comparison of the exported with the trained model


def export(science: "Science", settings: "Settings", run: Path, kept: Mapping[str, str] | None = None) -> Path:
    """Create the model folder of a finished run, `models/<run>`, and return its path.

    Edited sections of the card are preserved: from this folder's card, else the previous model's, else `kept` (the
    Hub's card); a section edited in `kept` since takes precedence over an unedited one.

    Raises StackError if the exported model's outputs differ from the trained model's.
    """
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    folder = settings.models / run.name
    store = open_store(settings.storage, settings)
    splits, facts = dataset.load(science, settings, store)
    if dataset.fingerprint(facts) != result["data"]["sha256"]:
        raise StackError(
            f"the data set in {settings.storage} differs from the one that run {run.name} was trained on; "
            f"train again, or restore that data set with `{settings.command} data`"
        )
    if result.get("model_sums", found := model_sums(run / MODEL)) != found:  # older results have no checksums
        raise StackError(
            f"the model in {run / MODEL} differs from the one that run {run.name} evaluated; "
            "restore its files, or train again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        config: Any = read(science.config, result["config"])
    except StackError as error:
        raise StackError(f"run {run.name} was trained with another config.py: {error}; train again") from None
    model = science.model.load(run / MODEL)
    written = merge_sections(kept_sections(settings.models, folder), kept or {})
    shutil.copytree(run / MODEL, folder, dirs_exist_ok=True)  # a README.md in it is overwritten below
    judged = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    told = {**result["data"], "published": dataset.published(store, result["data"]["sha256"])}
    card(settings, science, {**result, **judged, "data": told}, type(model).__name__, written).save(folder / CARD)
    for name in judged["pictures"].values():
        shutil.copyfile(run / PICTURES / name, folder / name)
    write_onnx(science, config, model, splits["test"], folder / ONNX)
    _json(folder / "metrics.json", {name: result[name] for name in ("test", "validation")})
    _json(folder / RESULT, result)
    predictor = science.predict.load(folder)
    [sample] = json_round_trip(dataset.examples(science, splits["test"], [0]))
    _json(folder / "sample.json", {"input": sample, "output": _call_predict(science, "apply", sample, predictor)})
    _json(folder / "reference.json", reference(watch_examples(science, splits["train"], predictor)))
    write_origins(settings, folder)
    copy_code(science.folder, folder)
    name = escape_markdown(settings.title or settings.project)
    text = notebook(name, science.folder, settings.model_repo)
    (folder / NOTEBOOK).write_text(text, encoding="utf-8")
    write_manifest(folder)
    return folder


def watch_examples(science: "Science", split: "Split", predictor: Any) -> list[Mapping[str, Any]]:
    """Return the results of `watch` for evenly spaced rows of a split, computed in batches to limit memory."""
    rows = np.linspace(0, split.rows - 1, min(split.rows, REFERENCE_ROWS)).astype(int)
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(rows), BATCH):
        calls = json_round_trip(dataset.examples(science, split, rows[start : start + BATCH].tolist()))
        answers = _call_predict(science, "apply_batch", calls, predictor)
        found += [science.predict.watch(*pair, predictor) for pair in zip(calls, answers, strict=True)]
    return found


def kept_sections(models: Path, folder: Path) -> dict[str, str]:
    """Return the edited sections of a folder's card, completed by those of the other models' cards, latest first."""
    cards = sorted(models.glob(f"*/{CARD}"), key=lambda path: (path.parent == folder, path.stat().st_mtime))
    found: dict[str, str] = {}
    for path in cards:
        found |= edited_sections(read_card(path, str(path)))
    return found


def write_origins(settings: "Settings", folder: Path) -> None:
    """Write what the model was built with: versions of installed packages, settings, license."""
    lines = "\n".join(provenance.requirements(settings.project))
    (folder / "requirements.txt").write_text(f"{lines}\n", encoding="utf-8")
    for name in (FILE, "LICENSE"):
        if (settings.root / name).exists():
            shutil.copyfile(settings.root / name, folder / name)


def write_onnx(science: "Science", config: Any, model: Any, split: "Split", path: Path) -> None:
    """Export a model to ONNX, with model.py's `export` if it has one. Raises StackError if outputs differ by 1e-4."""
    columns = split.take(range(min(ROWS, split.rows)))
    given = science.model.inputs(science.data.prepare(config, split.facts, columns, None))
    own = getattr(science.model, "export", None)
    expected = own(model, given, path) if own else _export_module(science, model, given, path)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = session.run(list(expected), {one.name: given[one.name] for one in session.get_inputs()})
    for name, answer in zip(expected, answers, strict=True):
        differences, most = np.abs(answer - expected[name]), np.abs(expected[name]).max()
        if not (differences <= TOLERANCE * max(most, 1)).all():  # relative, because of float32 rounding
            difference = float(differences.max())
            raise StackError(f"the exported model differs from the trained one by {difference:.1e} in {name}")


def _export_module(science: "Science", model: Any, given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Export the module returned by `served`; return its outputs by name."""
    import torch
    from torch.jit._trace import TracerWarning

    module, inputs = science.model.served(model).eval(), science.model.INPUTS
    tensors = [torch.from_numpy(given[name]) for name in inputs]
    with warnings.catch_warnings(), torch.no_grad():
        # The dynamo exporter takes 13 s for a small model and needs two more packages; this one takes 0.1 s.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Tracing warns about each shape check and index; the exported model is compared with the original anyway.
        warnings.filterwarnings("ignore", category=TracerWarning)
        warnings.filterwarnings("ignore", "Exporting aten::index operator")
        torch.onnx.export(
            module,
            tuple(values[:2] for values in tensors),
            path,
            dynamo=False,
            input_names=list(inputs),
            output_names=list(science.model.OUTPUTS),
            dynamic_axes={**inputs, **science.model.OUTPUTS},
        )
        answers = module(*tensors)
    answers = answers if isinstance(answers, tuple) else (answers,)
    return {name: answer.numpy() for name, answer in zip(science.model.OUTPUTS, answers, strict=True)}


def _call_predict(science: "Science", name: str, inputs: Any, predictor: Any) -> Any:
    """Call a function of predict.py on examples in the form that a caller sends. Raises StackError if it fails."""
    try:
        return getattr(science.predict, name)(inputs, predictor)
    except Exception as error:
        frames = [(Path(frame.filename), frame.lineno) for frame in extract_tb(error.__traceback__)]
        *_, (file, line) = [frame for frame in frames if frame[0].parent == science.folder] or frames
        remedy = "; make predict.py accept null for NaN, or make `example` in data.py omit values that JSON lacks"
        raise StackError(
            f"{name} in predict.py failed on examples of the data set at {file.name}:{line}: {one_line(error)}"
            f"{remedy if b'null' in as_json(inputs) else ''}"
        ) from error


def _json(path: Path, value: Any) -> None:
    path.write_bytes(as_json(value))
