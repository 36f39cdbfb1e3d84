"""The model folder: everything that a reader, the Hub and the gateway need of a trained model."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from free_ml_stack.data import dataset
from free_ml_stack.errors import StackError, one_line
from free_ml_stack.evaluation.drift import reference
from free_ml_stack.hub.card import card, edited_sections, merge_sections, read_card
from free_ml_stack.project.settings import FILE
from free_ml_stack.storage.documents import as_json, as_sent
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking import provenance
from free_ml_stack.training.outcome import EVALUATION, MODEL, PICTURES, RESULT

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

ONNX, CARD = "model.onnx", "README.md"
TOLERANCE = 1e-4
REFERENCE = 5000  # training examples at most that say what normal calls look like
CALLS = 64  # made at once
ROWS = 100  # test examples on which the exported model is held against the trained one


def export(science: "Science", settings: "Settings", run: Path, kept: Mapping[str, str] | None = None) -> Path:
    """Make the model folder of a finished run, `models/<run>`, and return it.

    Sections of its card, of the card before it or of `kept` that a person edited are kept, in this order, but what is
    edited in `kept` since comes before what is not. Raises StackError if the exported model does not answer as the
    trained one does.
    """
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    folder = settings.models / run.name
    splits, facts = dataset.read(open_store(settings.storage, settings), settings.private / "cache", settings.command)
    if dataset.fingerprint(facts) != result["data"]["sha256"]:
        raise StackError(
            f"the data set in {settings.storage} is not the one that run {run.name} was trained on: "
            f"train again, or write that data set again with `{settings.command} data`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config, model = science.config(**result["config"]), science.model.load(run / MODEL)
    written = merge_sections(kept_sections(settings.models, folder), kept or {})
    shutil.copytree(run / MODEL, folder, dirs_exist_ok=True)  # a card among it, of the Hub's client, is no card
    judged = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    card(settings, science, {**result, **judged}, type(model).__name__, written).save(folder / CARD)
    for name in judged["pictures"].values():
        shutil.copyfile(run / PICTURES / name, folder / name)
    write_onnx(science, config, model, splits["test"], folder / ONNX)
    _json(folder / "metrics.json", {name: result[name] for name in ("test", "validation")})
    _json(folder / RESULT, result)
    predictor = science.predict.load(folder)
    [sample] = as_sent(dataset.examples(science, splits["test"], [0]))
    _json(folder / "sample.json", {"input": sample, "output": _call(science.predict.apply, sample, predictor)})
    _json(folder / "reference.json", reference(watched(science, splits["train"], predictor)))
    origins(settings, folder)
    write_manifest(folder)
    return folder


def watched(science: "Science", split: "Split", predictor: Any) -> list[Mapping[str, Any]]:
    """What `watch` names of calls with rows of a split; a few at a time, for inputs may be large."""
    rows = np.linspace(0, split.rows - 1, min(split.rows, REFERENCE)).astype(int)
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(rows), CALLS):
        calls = as_sent(dataset.examples(science, split, rows[start : start + CALLS].tolist()))
        answers = _call(science.predict.apply_batch, calls, predictor)
        found += [science.predict.watch(*pair, predictor) for pair in zip(calls, answers, strict=True)]
    return found


def kept_sections(models: Path, folder: Path) -> dict[str, str]:
    """The sections that a person wrote into a folder's card, else into the latest card of another."""
    cards = sorted(models.glob(f"*/{CARD}"), key=lambda path: (path.parent == folder, path.stat().st_mtime))
    found: dict[str, str] = {}
    for path in cards:
        found |= edited_sections(read_card(path, str(path)))
    return found


def origins(settings: "Settings", folder: Path) -> None:
    """What the model was made with: the packages as they are installed, the settings, the license."""
    lines = "\n".join(provenance.requirements(settings.project))
    (folder / "requirements.txt").write_text(f"{lines}\n", encoding="utf-8")
    for name in (FILE, "LICENSE"):
        if (settings.root / name).exists():
            shutil.copyfile(settings.root / name, folder / name)


def write_onnx(science: "Science", config: Any, model: Any, split: "Split", path: Path) -> None:
    """Export a model to ONNX as model.py says, and compare what the two answer to a hundred rows, to 1e-4."""
    columns = split.take(range(min(ROWS, split.rows)))
    given = science.model.inputs(science.data.prepare(config, split.facts, columns, None))
    own = getattr(science.model, "export", None)
    expected = own(model, given, path) if own else _export_module(science, model, given, path)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = session.run(list(expected), {one.name: given[one.name] for one in session.get_inputs()})
    for name, answer in zip(expected, answers, strict=True):
        differences, most = np.abs(answer - expected[name]), np.abs(expected[name]).max()
        if not (differences <= TOLERANCE * max(most, 1)).all():  # sums of float32 are as exact as their largest parts
            difference = float(differences.max())
            raise StackError(f"the exported model differs from the trained one by {difference:.1e} in {name}")


def _export_module(science: "Science", model: Any, given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Export what `served` makes of a torch module; returns what it answers, by output."""
    import torch
    from torch.jit._trace import TracerWarning

    module, inputs = science.model.served(model).eval(), science.model.INPUTS
    tensors = [torch.from_numpy(given[name]) for name in inputs]
    with warnings.catch_warnings(), torch.no_grad():
        # The newer exporter takes 13 s for a small model and needs two more packages; this one takes 0.1 s.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # It warns of each check of a shape, and of each index; what it exports is compared with the model.
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


def _call(function: Callable[..., Any], inputs: Any, predictor: Any) -> Any:
    """What a function of predict.py answers to examples of the data set, as a caller sends them."""
    try:
        return function(inputs, predictor)
    except Exception as error:
        raise StackError(
            f"predict.py fails on examples of the data set, as a caller sends them: {one_line(error)}; "
            "let `example` of data.py leave out what JSON lacks, or let predict.py take null for it"
        ) from error


def _json(path: Path, value: Any) -> None:
    path.write_bytes(as_json(value))
