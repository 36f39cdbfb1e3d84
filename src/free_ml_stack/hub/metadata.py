"""Metadata of a model card: license, task, library, data sets, base model, results."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from free_ml_stack.console import say
from free_ml_stack.errors import StackError
from free_ml_stack.evaluation.result import metric_title
from free_ml_stack.storage import repository

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

RESULT = "result.json"
LIBRARIES = "libraries.txt"  # the ids of @huggingface/tasks 0.21.54; for other ids the Hub shows no snippet


def metadata(settings: "Settings", science: "Science", result: Mapping[str, Any]) -> ModelCardData:
    """Return the metadata of the card: license, task, data, base model and results."""
    license_id = "other" if settings.license == "Proprietary" else settings.license.lower()
    data, data_name = result["data"], result["data"]["name"]
    sources = (data.get("source", ""), data.get("published", ""), settings.storage)
    data_id = next(filter(None, (repository_id(url, "dataset") for url in sources)), data_name)
    scores = {name: float("nan" if value is None else value) for name, value in result["test"].items()}
    if unfit := next((name for name, value in scores.items() if not math.isfinite(value)), ""):
        raise StackError(f"README.md: metric {unfit}: expected a finite value, got {scores[unfit]}")
    results = [
        EvalResult(
            task_type=science.model.TASK,
            dataset_type=data_id,
            dataset_name=data_name,
            dataset_split="test",
            metric_type=name,
            metric_name=metric_title(name),
            metric_value=value,
        )
        for name, value in scores.items()
    ]
    if settings.new_version and settings.new_version == settings.model_repo:
        raise StackError(f"new_version: expected a repository other than model_repo, got {settings.new_version}")
    extra: dict[str, Any] = {"datasets": [data_id] if "/" in data_id else None, "new_version": settings.new_version}
    if license_id == "other":
        extra |= {"license_name": settings.license.lower(), "license_link": "LICENSE"}
    if bucket := repository_id(settings.storage, repository.BUCKET):
        extra["buckets"] = [bucket]
    if started := base_model(settings, science, result["config"]):
        extra |= {"base_model": started, "base_model_relation": "finetune"}
    return ModelCardData(
        model_name=settings.title or settings.project,
        license=license_id,
        library_name=library(science, result["config"]),
        pipeline_tag=science.model.TASK,
        tags=[data_name.rpartition("/")[2], "free-ml-stack"],
        metrics=list(scores),
        eval_results=results,
        **{name: value for name, value in extra.items() if value},
    )


def library(science: "Science", config: Mapping[str, Any]) -> str | None:
    """Return the library id of model.py; None if it is empty or unknown to the Hub, which is printed."""
    named = optional_text(science, "library", config)
    if named and named not in files(__package__).joinpath(LIBRARIES).read_text(encoding="utf-8").split():
        say(f"unknown library {named} on the Hub, library_name omitted from the card; change `library` in model.py")
        return None
    return named or None


def base_model(settings: "Settings", science: "Science", config: Mapping[str, Any]) -> str:
    """Return the model on the Hub that a run is based on, directly or through other runs of this project."""
    passed: set[str] = set()
    while (init := str(config.get("init", ""))) and init not in passed:
        if found := repository_id(init):
            return found
        passed.add(init)
        earlier = next((path for path in _results(settings, init) if path.is_file()), None)
        if not earlier:
            break
        config = json.loads(earlier.read_text(encoding="utf-8"))["config"]
    return optional_text(science, "base_model", config)


def _results(settings: "Settings", init: str) -> list[Path]:
    return [settings.runs / init / RESULT, settings.models / init / RESULT] if "/" not in init else []


def optional_text(science: "Science", name: str, config: Mapping[str, Any]) -> str:
    """Return the result of an optional function of model.py for a configuration; empty without the function."""
    function = getattr(science.model, name, None)
    if not function:
        return ""
    names = {field.name for field in fields(science.config)}
    return str(function(science.config(**{key: value for key, value in config.items() if key in names})))


def repository_id(url: str, kind: str = "model") -> str:
    """Return the `user/name` in a URL of the Hub, "" for other URLs and kinds. Raises StackError if it is invalid."""
    if not url.startswith(repository.SCHEME):
        return ""
    found = repository.parse(url)
    return found.id if found.kind == kind else ""
