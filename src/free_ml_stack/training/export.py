"""The model folder: everything that a reader, the Hub and the gateway need of a trained model."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.jit._trace import TracerWarning

from free_ml_stack.data import dataset
from free_ml_stack.errors import StackError
from free_ml_stack.evaluation.drift import reference
from free_ml_stack.hub.card import card, edited_sections, merge_sections, read_card
from free_ml_stack.project.settings import FILE
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking import provenance
from free_ml_stack.training.outcome import EVALUATION, PICTURES, RESULT, WEIGHTS

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

ONNX, CARD = "model.onnx", "README.md"
TOLERANCE = 1e-4
REFERENCE = 5000  # training examples at most that say what normal calls look like
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
    model = trained(science, run, result["config"])
    written = merge_sections(kept_sections(settings.models, folder), kept or {})
    judged = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    card(settings, science, {**result, **judged}, type(model).__name__, written).save(folder / CARD)
    for name in judged["pictures"].values():
        shutil.copyfile(run / PICTURES / name, folder / name)
    science.model.save(model, folder)
    write_onnx(science, model, splits["test"], folder / ONNX)
    _json(folder / "metrics.json", {name: result[name] for name in ("test", "validation")})
    _json(folder / RESULT, result)
    predictor = science.predict.load(folder)
    [sample] = dataset.examples(science, splits["test"], [0])
    _json(folder / "sample.json", {"input": sample, "output": science.predict.apply(sample, predictor)})
    spread = np.linspace(0, splits["train"].rows - 1, min(splits["train"].rows, REFERENCE)).astype(int)
    calls = dataset.examples(science, splits["train"], spread.tolist())
    answers = science.predict.apply_batch(calls, predictor)
    watched = [science.predict.watch(*pair, predictor) for pair in zip(calls, answers, strict=True)]
    _json(folder / "reference.json", reference(watched))
    origins(settings, folder)
    write_manifest(folder)
    return folder


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


def trained(science: "Science", run: Path, config: Mapping[str, Any]) -> Any:
    """The model of a run, with its weights, ready to answer."""
    model = science.model.build(science.config(**config))
    model.load_state_dict(load_file(run / WEIGHTS), strict=True)
    return model.eval()


def write_onnx(science: "Science", model: Any, split: "dataset.Split", path: Path) -> None:
    """Export a model to ONNX as model.py states it, and compare the two on a hundred rows, to 1e-4."""
    rows = torch.arange(min(ROWS, split.rows))
    given = science.model.inputs(split.take(rows, torch.device("cpu")))
    served = science.model.served(model).eval()
    with warnings.catch_warnings():
        # The newer exporter takes 13 s for a small model and needs two more packages; this one takes 0.1 s.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # It warns of each check of a shape; what it exports is compared with the model below.
        warnings.filterwarnings("ignore", category=TracerWarning)
        torch.onnx.export(
            served,
            tuple(values[:2] for values in given.values()),
            path,
            dynamo=False,
            input_names=list(science.model.INPUTS),
            output_names=list(science.model.OUTPUTS),
            dynamic_axes={**science.model.INPUTS, **science.model.OUTPUTS},
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exported = session.run(None, {name: values.numpy() for name, values in given.items()})
    with torch.no_grad():
        expected = served(*given.values())
    for name, one, other in zip(science.model.OUTPUTS, exported, _many(expected), strict=True):
        if not np.allclose(one, other.numpy(), rtol=TOLERANCE, atol=TOLERANCE):
            difference = float(np.abs(one - other.numpy()).max())
            raise StackError(f"the exported model differs from the trained one by {difference:.1e} in {name}")


def _many(values: Any) -> tuple[torch.Tensor, ...]:
    return values if isinstance(values, tuple) else (values,)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
