"""Results of a training run: weights and metrics first, then pictures and tables, which may fail."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from free_ml_stack.console import say
from free_ml_stack.errors import one_line
from free_ml_stack.evaluation import Evaluation
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.documents import as_json
from free_ml_stack.tracking.run import METRICS, Run, file_sum

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split
    from free_ml_stack.project.science import Science

RESULT, MODEL, EVALUATION = "result.json", "model", "evaluation.json"
PICTURES = "pictures"
EVALUATED = ("validation", "test")  # splits


def save_outcome(
    science: "Science", config: Any, model: Any, splits: Mapping[str, "Split"], run: Run, facts: Mapping[str, Any]
) -> tuple[dict[str, Any], Evaluation]:
    """Save the model, evaluate it and write the result; return the result and the evaluation of the test split."""
    (run.folder / MODEL).mkdir(exist_ok=True)
    science.model.save(model, run.folder / MODEL)
    try:
        found: dict[str, Evaluation] = {name: science.train.evaluate(config, model, splits[name]) for name in EVALUATED}
    except Exception:
        say(f"Evaluation failed; the model of {run.id} is saved. Correct the error, then run `train --run {run.id}`.")
        raise
    scores = {name: dict(evaluation.metrics) for name, evaluation in found.items()}
    result = {
        **facts,
        **scores,
        "model_sums": model_sums(run.folder / MODEL),
        "url": getattr(run.tracker, "url", ""),  # the run's page, for the model card
    }
    _write_evaluation(run, {}, {})  # a run that is interrupted before the pictures are drawn can be published
    replace(run.folder / RESULT, as_json(result))
    run.summary(**{f"{split}_{name}": value for split in EVALUATED for name, value in scores[split].items()})
    return result, found["test"]


def model_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 checksums of the model's files, by which `publish` finds other ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sum(path) for path in files}


def draw_outcome(run: Run, evaluation: Evaluation) -> None:
    """Write the pictures and tables of a run and log them to its tracker; a picture that fails is skipped."""
    from free_ml_stack.evaluation import plots  # imports matplotlib, which trials do not need

    drawings = {"Learning curves": lambda path: plots.learning_curves(run.folder / METRICS, path)}
    pictures = {}
    for title, draw in {**drawings, **evaluation.pictures}.items():
        path = run.folder / PICTURES / f"{slug(title)}.png"
        path.parent.mkdir(exist_ok=True)
        try:
            draw(path)
        except Exception as error:  # project code; the run is valid without this picture
            say(f"Skipped the picture {title}: {one_line(error)}")
            continue
        pictures[title] = path.name
        run.picture(path.stem, path)
    tables = {}
    for name, (columns, rows) in evaluation.tables.items():
        stem = run.folder / PICTURES / slug(name)
        drawn = [
            [_drawn(cell, Path(f"{stem}_{number}_{place}.png")) for place, cell in enumerate(row)]
            for number, row in enumerate(rows)
        ]
        run.table(name, columns, drawn)
        plain = [[run.relative(cell) if isinstance(cell, Path) else cell for cell in row] for row in drawn]
        tables[name] = {"columns": list(columns), "rows": plain}
    _write_evaluation(run, pictures, tables)


def _write_evaluation(run: Run, pictures: Mapping[str, str], tables: Mapping[str, Any]) -> None:
    content = {"pictures": pictures, "tables": tables}
    replace(run.folder / EVALUATION, as_json(content))


def slug(title: str) -> str:
    """Convert a title to a file name."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "picture"


def _drawn(cell: Any, path: Path) -> Any:
    """Write an array of uint8 pixels as a PNG, enlarged to at least 64 pixels, and return its path; else the cell."""
    if not isinstance(cell, np.ndarray):
        return cell
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    scale = max(1, 64 // max(cell.shape[:2]))
    size = (cell.shape[1] * scale, cell.shape[0] * scale)
    Image.fromarray(cell).resize(size, Image.Resampling.NEAREST).save(path)
    return path
