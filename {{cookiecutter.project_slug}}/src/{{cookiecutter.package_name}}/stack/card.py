"""The model card: metadata and text made from the run, nothing that was not measured."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .evaluation import NAMES

if TYPE_CHECKING:
    from .science import Science
    from .settings import Settings

HUB_LICENSES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "BSD-3-Clause": "bsd-3-clause"}
KEPT = ("Intended use", "Limits")
PLACES = 4  # digits shown in the text; the metadata has them all


def card(
    settings: "Settings", science: "Science", result: Mapping[str, Any], model: str, kept: Mapping[str, str]
) -> ModelCard:
    """The card of a run's model. `model` names its class, `kept` are the sections that a person wrote before."""
    return ModelCard(
        f"---\n{metadata(settings, science, result).to_yaml()}\n---\n\n{text(settings, science, result, model, kept)}"
    )


def metadata(settings: "Settings", science: "Science", result: Mapping[str, Any]) -> ModelCardData:
    """The block that the Hub reads: license, task, data and results."""
    license_id = HUB_LICENSES.get(settings.license, "other")
    results = [
        EvalResult(
            task_type=science.model.TASK,
            dataset_type=science.data.NAME,
            dataset_name=science.data.NAME,
            dataset_split="test",
            metric_type=name,
            metric_name=NAMES[name],
            metric_value=float(value),
        )
        for name, value in result["test"].items()
        if name in NAMES
    ]
    extra: dict[str, Any] = {}
    if license_id == "other":
        extra = {"license_name": settings.license.lower(), "license_link": "LICENSE"}
    return ModelCardData(
        model_name=settings.title or settings.project,
        license=license_id,
        library_name="pytorch",
        pipeline_tag=science.model.TASK,
        tags=[science.data.NAME, "free-ml-stack"],
        metrics=[name for name in NAMES if name in result["test"]],
        eval_results=results,
        **extra,
    )


def text(
    settings: "Settings", science: "Science", result: Mapping[str, Any], model: str, kept: Mapping[str, str]
) -> str:
    """The card's Markdown below the metadata."""
    data, machine = result["data"], result["machine"]
    rows = ", ".join(f"{count:,} {name}" for name, count in data["rows"].items())
    scores = "\n".join(
        f"| {NAMES[name]} | {result['validation'][name]:.{PLACES}f} | {value:.{PLACES}f} |"
        for name, value in result["test"].items()
        if name in NAMES
    )
    changed = "\n".join(f"| `{name}` | {value} |" for name, value in result["config"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["environment"].items())
    return f"""# {settings.title or settings.project}

{settings.description}

- Model: `{model}`, {result["parameters"]:,} parameters
- By: {settings.author}
- License: {settings.license}

## Intended use

{kept.get("Intended use", _intended(science))}

## How to use

With this repository's package installed:

```python
from {science.package}.model import {model}

model = {model}.from_pretrained("{settings.model_repo or "."}", strict=True).eval()
```

Without torch, on ONNX Runtime (`model.onnx` is the same model):

```python
from pathlib import Path
from {science.package}.predict import apply, load

answer = apply([[0] * 8] * 8, load(Path(".")))
```

## Data

{data["name"]}, from {science.data.SOURCE}: {rows} examples. SHA-256 of the data set: `{data["sha256"]}`.

## Training

{result["steps"]:,} steps in {result["seconds"]:.1f} s on {machine["device"]} ({machine["system"]},
{machine["processor"]}), processes: {result["processes"]}. The weights are those with the lowest validation loss.

| setting | value |
| --- | --- |
{changed}

![Learning curves](learning_curves.png)

## Results

| metric | validation | test |
| --- | --- | --- |
{scores}

![Confusion matrix](confusion.png)

## Limits

{kept.get("Limits", _limits(science, data))}

## Reproduce

Run `{result["run"]}`, commit `{result["commit"] or "not under git"}`. {versions}.
"""


def sections(card: str) -> dict[str, str]:
    """The sections of an earlier card that a person may have edited, to be kept."""
    found = {}
    for part in card.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        if title.strip() in KEPT:
            found[title.strip()] = body.strip()
    return found


def _intended(science: "Science") -> str:
    task = science.model.TASK.replace("-", " ").capitalize()
    names = ", ".join(str(label) for label in science.data.LABELS)
    return f"{task} of inputs like those of {science.data.NAME}, into the classes {names}."


def _limits(science: "Science", data: Mapping[str, Any]) -> str:
    return (
        f"Measured on the test split of {science.data.NAME} only ({data['rows']['test']:,} examples). "
        "Inputs of another kind were not tried, and the confidence was not calibrated."
    )
