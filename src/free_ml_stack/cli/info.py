"""The state of a project: settings, runs, models and deployed version."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.project.flags import read_json

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

RESULTS = ("validation", "test", "steps", "seconds")


def info(settings: "Settings") -> dict[str, Any]:
    """Return settings, runs (oldest first), the latest published model and the live version."""
    from dataclasses import fields

    from free_ml_stack.project.settings import Options

    models, found = published_models(settings), runs(settings)
    measured = [run["validation"] for run in found if run["validation"]]
    return {
        "settings": {option.name: getattr(settings, option.name) for option in fields(Options)},
        "keys": sorted(settings.credentials),
        "headline": next(iter(measured[-1])) if measured else None,
        "runs": found,
        "latest_model": models[-1].relative_to(settings.root).as_posix() if models else None,
        "deployed": deployed(settings),
    }


def runs(settings: "Settings") -> list[dict[str, Any]]:
    """Return the training runs, oldest first; unfinished ones have no metrics."""
    configs = sorted(settings.runs.glob("*/config.json"), key=lambda path: path.stat().st_mtime_ns)
    return [_run(path.parent, read_json(path)) for path in configs]


def _run(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    from free_ml_stack.tracking.run import FACTS

    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    measured = {name: result.get(name) for name in RESULTS}
    asked = {name: value for name, value in config.items() if name not in FACTS}
    return {"run": folder.name, "finished": bool(result), **measured, "config": asked}


def published_models(settings: "Settings") -> list[Path]:
    """Return the folders of the published models, oldest first."""
    manifests = settings.models.glob("*/manifest.json") if settings.models.is_dir() else []
    return [path.parent for path in sorted(manifests, key=lambda path: path.stat().st_mtime_ns)]


def deployed(settings: "Settings") -> dict[str, str] | None:
    """Return the live version of the algorithm, or None."""
    from free_ml_stack.deployment.versions import read_algorithm
    from free_ml_stack.storage.stores import open_store

    build = read_algorithm(open_store(settings.storage, settings), settings.algorithm.partition("/")[2]).latest()
    return {"version": build.version, "folder": build.folder, "deployed": build.finished_at} if build else None
