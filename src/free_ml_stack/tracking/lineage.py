"""What trackers are told of how things came about: data, run, model, card, deployment."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.tracking.opening import open_run
from free_ml_stack.tracking.run import Run

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

DATA, MODEL, CARD, DEPLOYMENT = "data", "model", "model-card", "deployment"  # artifacts, by name and kind


def data(run: Run, file: Path, fingerprint: str) -> None:
    """The data set that a run starts from: its manifest, for its bytes stay in the store."""
    if run.tracked:
        run.made(DATA, DATA, [file], fingerprint[:12], used=True, sha256=fingerprint)


def trained(run: Run, files: list[Path]) -> None:
    """The model of a run."""
    run.made(MODEL, MODEL, files, run.id)


def published(settings: "Settings", folder: Path, facts: Mapping[str, str]) -> str:
    """Track that a run's model was published with its card and pictures; returns where that is seen."""
    run = open_run(settings, f"publish-{folder.name}", "publish", settings.runs / f"publish-{folder.name}", facts)
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
