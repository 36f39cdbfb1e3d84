"""What comes of a training run: first weights and metrics, then pictures and tables, which may fail."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from free_ml_stack.console import say
from free_ml_stack.errors import one_line
from free_ml_stack.evaluation import Evaluation
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.documents import as_json
from free_ml_stack.tracking.run import METRICS, Run

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split
    from free_ml_stack.project.science import Science

RESULT, MODEL, EVALUATION = "result.json", "model", "evaluation.json"
PICTURES = "pictures"
JUDGED = ("validation", "test")  # the splits that a trained model is evaluated on


def keep(
    science: "Science", config: Any, model: Any, splits: Mapping[str, "Split"], run: Run, facts: Mapping[str, Any]
) -> tuple[dict[str, Any], Evaluation]:
    """Write the model, evaluate it, and write the result; returns it, and the evaluation of the test split."""
    (run.folder / MODEL).mkdir(exist_ok=True)
    science.model.save(model, run.folder / MODEL)
    try:
        found: dict[str, Evaluation] = {name: science.train.evaluate(config, model, splits[name]) for name in JUDGED}
    except Exception:
        say(f"The model of {run.id} is kept; evaluating it failed. Correct that, then `train --run {run.id}`.")
        raise
    scores = {name: dict(evaluation.metrics) for name, evaluation in found.items()}
    result = {
        **facts,
        **scores,
        "url": getattr(run.tracker, "url", ""),
    }  # the run's page, for its model's card
    _remember(run, {}, {})  # until they are drawn: whoever stops training before that has a run to publish
    replace(run.folder / RESULT, as_json(result))
    run.summary(**{f"{split}_{name}": value for split in JUDGED for name, value in scores[split].items()})
    return result, found["test"]


def show(run: Run, evaluation: Evaluation) -> None:
    """Draw the pictures and tables of a run, and tell its tracker of them; a picture that fails is left out."""
    from free_ml_stack.evaluation import plots  # matplotlib, which a trial does without

    drawings = {"Learning curves": lambda path: plots.learning_curves(run.folder / METRICS, path)}
    pictures = {}
    for title, draw in {**drawings, **evaluation.pictures}.items():
        path = run.folder / PICTURES / f"{slug(title)}.png"
        path.parent.mkdir(exist_ok=True)
        try:
            draw(path)
        except Exception as error:  # whatever a drawing of the project raises, the run is whole without it
            say(f"The picture {title} was left out: {one_line(error)}")
            continue
        pictures[title] = path.name
        run.picture(path.stem, path)
    tables = {name: _drawn(run.folder, name, *table) for name, table in evaluation.tables.items()}
    for name, (columns, rows) in tables.items():
        run.table(name, columns, rows)
    plain = {
        name: {"columns": list(columns), "rows": [[_plain(run.folder, cell) for cell in row] for row in rows]}
        for name, (columns, rows) in tables.items()
    }
    _remember(run, pictures, plain)


def _remember(run: Run, pictures: Mapping[str, str], tables: Mapping[str, Any]) -> None:
    content = {"pictures": pictures, "tables": tables}
    replace(run.folder / EVALUATION, as_json(content))


def slug(title: str) -> str:
    """A title as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "picture"


def _drawn(
    folder: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> tuple[Sequence[str], list[list[Any]]]:
    """A table whose arrays are PNG files in the run's folder."""
    made = [
        [
            _png(cell, folder / PICTURES / f"{slug(name)}_{number}.png") if isinstance(cell, np.ndarray) else cell
            for cell in row
        ]
        for number, row in enumerate(rows)
    ]
    return columns, made


def _png(pixels: "np.ndarray[Any, Any]", path: Path) -> Path:
    """Pixels (h, w) or (h, w, 3) of uint8 as a PNG, large enough to be seen."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    scale = max(1, 64 // max(pixels.shape[:2]))
    size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def _plain(folder: Path, cell: Any) -> Any:
    return cell.relative_to(folder).as_posix() if isinstance(cell, Path) else cell
