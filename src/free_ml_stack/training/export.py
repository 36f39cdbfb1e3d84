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
from free_ml_stack.evaluation import metrics as evaluation
from free_ml_stack.evaluation import plots as pictures
from free_ml_stack.evaluation.drift import reference
from free_ml_stack.hub.card import card, edited_sections, merge_sections, read_card
from free_ml_stack.project.settings import FILE
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.storage.stores import open_store
from free_ml_stack.tracking import provenance
from free_ml_stack.tracking.run import METRICS
from free_ml_stack.training.run import PREDICTIONS, RESULT, WEIGHTS

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

ONNX, CARD = "model.onnx", "README.md"
TOLERANCE = 1e-5
REFERENCE = 5000  # training examples at most that say what normal calls look like
ROWS = 256  # test examples on which the exported model is held against the trained one


def export(
    science: "Science", settings: "Settings", run: Path, kept: Mapping[str, str] | None = None
) -> Path:
    """Make the model folder of a finished run, `models/<run>`, and return it.

    Sections of its card, of the card before it or of `kept` that a person edited are kept, in this order, but what is
    edited in `kept` since comes before what is not. Raises StackError if the exported model does not answer as the
    trained one does.
    """
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    folder = settings.models / run.name
    folder.mkdir(parents=True, exist_ok=True)
    splits, _ = dataset.read(
        open_store(settings.storage, settings), settings.private / "cache", settings.command
    )
    model = trained(science, run, result["config"])
    written = merge_sections(kept_sections(settings.models, folder), kept or {})
    card(settings, science, result, type(model).__name__, written).save(folder / CARD)
    model.save_pretrained(folder)
    write_onnx(model, splits["test"], folder / ONNX)
    _json(folder / "labels.json", science.data.LABELS)
    _json(folder / "metrics.json", {name: result[name] for name in ("test", "validation")})
    _json(folder / RESULT, result)
    predictor = science.predict.load(folder)
    sample = splits["test"]["image"][0].tolist()
    _json(folder / "sample.json", {"input": sample, "output": science.predict.apply(sample, predictor)})
    spread = torch.linspace(0, splits["train"].rows - 1, min(splits["train"].rows, REFERENCE)).long()
    images = splits["train"]["image"][spread].tolist()
    answers = science.predict.apply_batch(images, predictor)
    _json(folder / "reference.json", reference(answers, [science.predict.summary(image) for image in images]))
    draw(run, splits["test"]["label"].numpy().astype(np.int64), science.data.LABELS, folder)
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


def write_onnx(model: torch.nn.Module, split: "dataset.Split", path: Path) -> None:
    """Export to ONNX, probabilities for batches of any size, and hold them against the model's, to 1e-5."""
    example = split["image"][:ROWS].float()
    answering = torch.nn.Sequential(model, torch.nn.Softmax(1)).eval()
    axes = {"image": {0: "batch"}, "probabilities": {0: "batch"}}
    with warnings.catch_warnings():
        # The newer exporter takes 13 s for this model and needs two more packages; this one takes 0.1 s.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # It warns of each check of a shape; what it exports is held against the model below.
        warnings.filterwarnings("ignore", category=TracerWarning)
        torch.onnx.export(
            answering,
            (example[:2],),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes=axes,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exported = session.run(None, {"image": example.numpy()})[0]
    with torch.no_grad():
        expected = answering(example).numpy()
    if (difference := float(np.abs(exported - expected).max())) > TOLERANCE:
        raise StackError(
            f"the exported model differs from the trained one by {difference:.1e} in a probability"
        )


def draw(run: Path, labels: np.ndarray[Any, np.dtype[np.int64]], names: list[Any], folder: Path) -> None:
    """The pictures of a run, into the model folder."""
    predicted = np.load(run / PREDICTIONS)["test_logits"].argmax(axis=1)
    pictures.learning_curves(run / METRICS, folder / "learning_curves.png")
    pictures.confusion(evaluation.confusion(labels, predicted, len(names)), names, folder / "confusion.png")


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
