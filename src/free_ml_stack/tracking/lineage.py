"""Lineage for the tracker: data set, model, card and deployment as artifacts of runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.tracking.opening import open_run
from free_ml_stack.tracking.run import Run

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

DATA, MODEL, CARD, DEPLOYMENT = "data", "model", "model-card", "deployment"  # names and types of artifacts


def data(run: Run, file: Path, fingerprint: str) -> None:
    """Record the data set of a run, by its manifest; the files stay in the store."""
    if run.tracked:
        run.made(DATA, DATA, [file], fingerprint[:12], used=True, sha256=fingerprint)


def trained(run: Run, files: list[Path]) -> None:
    """Record the model of a run."""
    run.made(MODEL, MODEL, files, run.id)


def published(settings: "Settings", folder: Path, facts: Mapping[str, str]) -> str:
    """Record the publication of a model with its card and pictures; return the line that shows where to see it."""
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
    """Record the deployment of a published model as a version; return the line that shows where to see it."""
    name = f"deploy-{version}-{folder.name}"
    facts = {"algorithm": settings.algorithm, "version": version}
    run = open_run(settings, name, "deploy", settings.runs / name, facts)
    run.uses(MODEL, folder.name)
    run.uses(CARD, folder.name)
    run.made(DEPLOYMENT, DEPLOYMENT, [folder / "manifest.json"], version, version=version)
    return run.finish()
