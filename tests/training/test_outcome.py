"""Results of a run: failing pictures are skipped, and a model is published with its own data set only."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import places
import projects
import pytest
from PIL import Image
from waiting import until

from free_ml_stack.evaluation import Evaluation
from free_ml_stack.tracking.run import Run
from free_ml_stack.tracking.tracker import Tracker
from free_ml_stack.training import outcome


def test_a_failing_picture_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("first", tmp_path, Tracker())
    run.log(1, loss=2.0, validation_loss=1.0)

    def fails(path: Path) -> None:
        raise RuntimeError("no such\nfont")

    found = Evaluation({"rmse": 1.0}, {"Bad one": fails, "Good one": lambda path: path.write_bytes(b"PNG")})
    black, white = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    (tmp_path / "own.png").write_bytes(b"PNG")
    columns, rows = ("image", "other", "error"), [[black, white, 0.5], [tmp_path / "own.png", Path("/a.png"), 0.5]]
    outcome.draw_outcome(run, found.with_table("worst", columns, rows))
    run.finish()
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept["pictures"] == {"Learning curves": "learning_curves.png", "Good one": "good_one.png"}
    drawn = ["pictures/worst_0_0.png", "pictures/worst_0_1.png"]
    named = [[*drawn, 0.5], ["own.png", "/a.png", 0.5]]
    assert kept["tables"]["worst"] == {"columns": list(columns), "rows": named}
    for name, colour in zip(drawn, (0, 255), strict=True):
        assert Image.open(tmp_path / name).getextrema() == (colour, colour)
    assert capsys.readouterr().out == "Skipped the picture Bad one: RuntimeError: no such font\n"


@pytest.mark.slow
def test_publish_requires_the_data_set_of_the_run(data: Path, tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", data)
    projects.run(folder, "train", "--epochs", "1", "--name", "first")
    projects.run(folder, "data", "--seed", "1")
    printed = projects.run(folder, "publish", code=1)
    assert "differs from the one that run first was trained on; train again" in printed
    assert not list(folder.glob("models/*"))
    projects.run(folder, "data")
    assert "Model and card are in models/first" in projects.run(folder, "publish")


@pytest.mark.slow
def test_publish_requires_the_model_that_the_run_evaluated(data: Path, tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", data)
    for seed, name in enumerate(("first", "second")):
        projects.run(folder, "train", "--epochs", "1", "--seed", str(seed), "--name", name)
    weights = Path("model", "model.safetensors")
    kept = (folder / "runs/first" / weights).read_bytes()
    (folder / "runs/first" / weights).write_bytes((folder / "runs/second" / weights).read_bytes())
    printed = projects.run(folder, "publish", "--run", "first", code=1)
    assert "differs from the one that run first evaluated; restore its files, or train again" in printed
    (folder / "runs/first" / weights).write_bytes(kept)
    assert "Model and card are in models/first" in projects.run(folder, "publish", "--run", "first")


MISSING = """


def without(function):
    def changed(columns, row):
        return {column} if row == 0 else function(columns, row)
    return changed


example = without(example)
"""
BUG = """

def apply(input, model):
    return [][0]
"""
TAKES_NULL = """


def images_of(inputs, model):
    return np.nan_to_num(np.asarray(inputs, dtype=np.float32).reshape(len(inputs), *model.shape))
"""


@pytest.mark.slow
def test_a_missing_value_is_null_from_publish_to_the_gateway(data: Path, tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", data)
    shutil.copytree(places.SOURCE / "skeleton", package := tmp_path / "source" / "skeleton")
    with (package / "data.py").open("a") as file:
        file.write(MISSING.replace("{column}", "[[float('nan')] * 8] * 8"))
    own = {"PYTHONPATH": str(package.parent)}
    projects.run(folder, "train", "--epochs", "1", "--name", "first", **own)
    refused = projects.run(folder, "publish", code=1, **own)
    place = r"error: apply in predict.py failed on examples of the data set at predict.py:\d+: ValueError: .*"
    assert re.search(place + "; make predict.py accept null for NaN, or ", refused)
    text = (package / "predict.py").read_text("utf-8")
    (package / "predict.py").write_text(text + TAKES_NULL)
    with (package / "predict.py").open("a") as file:
        file.write(BUG)
    printed = projects.run(folder, "publish", code=1, **own)
    assert f"at predict.py:{(text + TAKES_NULL + BUG).count(chr(10))}: IndexError: list index out of range" in printed
    (package / "predict.py").write_text(text + TAKES_NULL)
    projects.run(folder, "publish", **own)
    sample = json.loads((folder / "models" / "first" / "sample.json").read_bytes(), parse_constant=pytest.fail)
    assert sample["input"] == [[None] * 8] * 8
    projects.run(folder, "deploy", **own)
    with projects.start(folder, "serve", **own) as serving:
        until((folder / ".stack" / "gateway.json").exists)
        answer, _ = json.JSONDecoder().raw_decode(projects.run(folder, "predict", **own))
        serving.terminate()
    assert answer["label"] == sample["output"]["label"]
    assert "1 calls of version 0.1.0, 0 failed" in projects.run(folder, "monitor", **own)


@pytest.mark.slow
def test_deploy_list_shows_the_live_version(data: Path, tmp_path: Path, other_disk: Path) -> None:
    folder, disks = projects.make(tmp_path / "project", data), {"TMPDIR": str(other_disk)}
    projects.run(folder, "train", "--epochs", "1", "--name", "first")
    for words in (("publish",), ("deploy",), ("deploy",), ("deploy", "--rollback")):
        projects.run(folder, *words, **disks)
    states = [line.split()[:3] for line in projects.run(folder, "deploy", "--list").splitlines()[2:4]]
    assert [row[:2] for row in states] == [["0.2.0", "rolled"], ["0.1.0", "live"]]
