"""What trackers are told of how things came about: data, run, model, card, deployment."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from free_ml_stack.evaluation import metrics as evaluation
from free_ml_stack.tracking.opening import open_run
from free_ml_stack.tracking.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from free_ml_stack.project.settings import Settings

DATA, MODEL, CARD, DEPLOYMENT = "data", "model", "model-card", "deployment"  # artifacts, by name and kind
MISTAKES = "mistakes"


def data(run: Run, file: Path, fingerprint: str) -> None:
    """The data set that a run starts from: its manifest, for its bytes stay in the store."""
    if run.tracked:
        run.made(DATA, DATA, [file], fingerprint[:12], used=True, sha256=fingerprint)


def trained(
    run: Run,
    files: list[Path],
    logits: "NDArray[Any]",
    labels: "NDArray[np.int64]",
    images: Any,
    names: list[Any],
) -> None:
    """The model of a run, how it confuses the classes of the test split, and its worst mistakes with their images."""
    if not run.tracked:
        return
    probabilities = evaluation.softmax(logits)
    predicted = probabilities.argmax(axis=1)
    rows = []
    for place, index in enumerate(evaluation.worst(probabilities, labels)):
        picture = _picture(np.asarray(images[int(index)]), run.folder / MISTAKES / f"{place:02d}.png")
        share = float(probabilities[index].max())
        rows.append([picture, str(names[labels[index]]), str(names[predicted[index]]), share])
    run.table("worst_mistakes", ["image", "true", "predicted", "confidence"], rows)
    run.confusion(labels.tolist(), predicted.tolist(), names)
    run.made(MODEL, MODEL, files, run.id)


def published(settings: "Settings", folder: Path, facts: Mapping[str, str]) -> str:
    """Track that a run's model was published with its card and pictures; returns where that is seen."""
    run = open_run(
        settings, f"publish-{folder.name}", "publish", settings.runs / f"publish-{folder.name}", facts
    )
    run.uses(MODEL, folder.name)
    for path in sorted(folder.glob("*.png")):
        run.picture(path.stem, path)
    run.made(
        CARD,
        CARD,
        [folder / "README.md", *sorted(folder.glob("*.png"))],
        folder.name,
        run=facts["run"],
        url=facts["url"],
    )
    return run.finish()


def deployed(settings: "Settings", folder: Path, version: str) -> str:
    """Track that a published model is in service as a version; returns where that is seen."""
    name = f"deploy-{version}-{folder.name}"
    facts = {"algorithm": settings.algorithm, "version": version}
    run = open_run(settings, name, "deploy", settings.runs / name, facts)
    run.uses(MODEL, folder.name)
    run.uses(CARD, folder.name)
    run.made(DEPLOYMENT, DEPLOYMENT, [folder / "manifest.json"], version, version=version)
    return run.finish()


def _picture(values: "NDArray[Any]", path: Path) -> Path:
    """Grey values (h, w) of any range as a PNG, large enough to be seen."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    low, high = float(values.min()), float(values.max())
    grey = ((values - low) / ((high - low) or 1) * 255).astype(np.uint8)
    Image.fromarray(grey).resize((8 * grey.shape[1], 8 * grey.shape[0]), Image.Resampling.NEAREST).save(path)
    return path
