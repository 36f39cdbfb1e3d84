"""Both tabular tasks with all commands, with the embedded data and with a user's table."""

import ast
import csv
import datetime
import importlib
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import Algorithmia
import forking
import fresh
import numpy as np
import projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browsing import ANSWERS, browse, faults, folder_served
from deployed import KEY, deployed
from huggingface_hub import ModelCard
from places import ROOT, TASKS, package
from threadpoolctl import threadpool_limits

from free_ml_stack.data import dataset
from free_ml_stack.data.split import Split
from free_ml_stack.deployment.answering import close
from free_ml_stack.deployment.spaces import web_page
from free_ml_stack.deployment.tensors import TensorModel
from free_ml_stack.hub.card import check
from free_ml_stack.project.science import Science
from free_ml_stack.storage.local import local_store

NAMES = ("tabular-classification", "tabular-regression")
OWN = {"tabular-classification": "sold above|average", "tabular-regression": "price:USD"}
LONG = ("--rounds", "120", "--patience", "0", "--column-dropout", "0.4", "--checkpoint-steps", "7", "--name", "one")
KILLED = """
import os, signal, sys
import free_ml_stack
from free_ml_stack.training.checkpoint import Checkpoints

def step(self, whole=Checkpoints.step):
    whole(self)
    if self.writing:  # else rounds as quick as these leave most checkpoints out
        self.writing.result()
    if self.at.step == steps:
        os.kill(os.getpid(), signal.SIGKILL)

package, steps = sys.argv.pop(1), int(sys.argv.pop(1))
Checkpoints.step = step
free_ml_stack.main(package)
"""

MEASURED = """
import re, sys
from pathlib import Path
import free_ml_stack

try:
    free_ml_stack.main(sys.argv.pop(1))
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def start(folder: Path, words: list[str]) -> forking.Running:
    return forking.start(words, folder, projects.environment(folder))


def run(folder: Path, task: str, *arguments: str, code: int = 0) -> str:
    """Run a command of a task's package; check its exit code and return its output."""
    process = start(folder, ["-m", package(task), *arguments])
    printed, complaint = process.communicate(timeout=300)
    assert process.returncode == code, printed + complaint
    assert "Traceback" not in complaint
    return printed + complaint


def settings(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stack.toml").write_text(
        'project = "tables"\nstorage = "./store"\nalgorithm = "me/Tables"\nlicense = "MIT"\n'
    )
    return folder


@pytest.fixture(scope="module", params=NAMES)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task and a project after its demo, with a sweep of four trials."""
    folder = settings(tmp_path_factory.mktemp(request.param))
    sweep = (TASKS / request.param / "sweep.yaml").read_text()
    assert "run_cap: 8" in sweep and "value: 500" in sweep
    (folder / "sweep.yaml").write_text(
        "method: random\n" + sweep.replace("run_cap: 8", "run_cap: 4").replace("value: 500", "value: 40")
    )
    run(folder, request.param, "demo")
    return request.param, folder


@pytest.fixture(scope="module", params=NAMES)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task and a project with a user's table and a published model that was trained briefly."""
    folder = settings(tmp_path_factory.mktemp(request.param))
    houses(folder / "houses.csv")
    stdout = run(folder, request.param, "data", "--from", "houses.csv", "--target", OWN[request.param])
    assert f"Dropped 1 rows without a value of {OWN[request.param]}." in stdout
    run(folder, request.param, "train", "--name", "own", "--rounds", "40")
    run(folder, request.param, "publish")
    return request.param, folder


def houses(path: Path) -> None:
    """A realistic table: column names with punctuation, categories, dates, times, booleans, missing values."""
    chance = random.Random(1)
    names = ["id", "area (m²)", 'kind "A", [x]', "sold on", "at", "garden", "rooms", *reversed(OWN.values())]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(names)
        for row in range(400):
            area, kind = chance.uniform(30, 200), chance.choice(("flat", "house", "loft, old", ""))
            day = datetime.date(2010, 1, 1) + datetime.timedelta(days=chance.randrange(5000))
            price = 3000 * area + {"flat": 0, "house": 90_000}.get(kind, 40_000) + 8000 * (day.year - 2010)
            values = [f"{area:.1f}" if chance.random() > 0.1 else "", kind, day, f"{chance.randrange(24):02}:30"]
            others = [chance.choice(("true", "false")), chance.choice(("1", "2", "3", "NA"))]
            targets = [f"{price:.0f}", "yes" if price > 420_000 else "no"] if row else ["", ""]
            table.writerow([1_700_000_000 + row, *values, *others, *targets])


def splits(task: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    found, _ = dataset.read(local_store(folder / "store"), folder / ".stack" / "cache", "")
    science = Science(package(task))
    return science, {
        name: science.data.prepare(science.config(), split.facts, split, None) for name, split in found.items()
    } | {"split": found["test"]}


@pytest.mark.slow
def test_the_demo_ends_with_a_served_model_and_a_complete_card(shown: tuple[str, Path]) -> None:
    task, folder = shown
    found = json.loads((folder / "runs" / "demo.json").read_text())
    assert found["calls"] >= 50 and found["prediction"].keys() & {"label", "prediction"}
    assert found["best_config"]["rounds"] == 40
    text = Path(found["card"]).read_text()
    card = ModelCard(text)
    check(text)
    assert card.data.pipeline_tag == task and card.data.library_name is None
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == found["test"]
    described = TensorModel(Path(found["model"])).metadata
    assert {tensor["shape"][0] for kind in described.values() for tensor in kind} == {-1}
    features = json.loads((Path(found["model"]) / "config.json").read_text())["fields"]
    report = Path(found["report"]).read_text()
    assert "![Feature importances](feature_importances.png)" in text and "<h2>Feature importances</h2>" in report
    for field in features:
        assert f"| {field['name'].replace('_', chr(92) + '_')} | " in text
        assert f"<tr><td>{field['name']}</td><td>" in report
    assert faults((folder / "report.html").as_uri()) == []
    files = json.loads((Path(found["model"]) / "manifest.json").read_text())["files"]
    assert {"model.onnx", "config.json", "trees.txt"} <= files.keys()


@pytest.mark.slow
def test_the_model_is_as_good_as_scikit_learns_default(shown: tuple[str, Path]) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    task, folder = shown
    result = json.loads((folder / "runs" / "demo.json").read_text())["test"]
    science, parts = splits(task, folder)
    fields = science.model.load(next((folder / "models").iterdir())).fields
    categories = [field["type"] == "category" for field in fields]
    peer = HistGradientBoostingClassifier if "class" in task else HistGradientBoostingRegressor
    with threadpool_limits(1):  # more wait for each other on a busy machine
        other = peer(random_state=0, categorical_features=categories)
        other.fit(parts["train"]["features"], parts["train"]["target"])
        guesses = other.predict(parts["test"]["features"])
    if "class" in task:
        assert result["accuracy"] >= (guesses == parts["test"]["target"]).mean()
    else:
        assert result["rmse"] <= np.sqrt(((guesses - parts["test"]["target"]) ** 2).mean())


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_bytes(own: tuple[str, Path], tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder in (whole, other):
        shutil.copytree(own[1], folder)
    run(whole, own[0], "train", *LONG)
    for steps in (17, 58, 119):  # the last of them just before the end
        process = start(other, ["-c", KILLED, package(own[0]), str(steps), "train", *LONG])
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
    assert "Resuming after step 119" in run(other, own[0], "train", *LONG)
    for name in ("model/trees.txt", "model/config.json", "metrics.jsonl"):
        assert (whole / "runs/one" / name).read_bytes() == (other / "runs/one" / name).read_bytes()


@pytest.mark.slow
def test_a_users_table_is_served_without_preprocessing(own: tuple[str, Path], tmp_path: Path) -> None:
    task, folder = own
    predict = importlib.import_module(f"{package(task)}.predict")
    model = next((folder / "models").iterdir())
    sample = json.loads((model / "sample.json").read_text())
    assert close(ast.literal_eval(fresh.use((model / "README.md").read_text(), model)), sample["output"])
    seen = fresh.execute(shutil.copytree(model, tmp_path / "copy") / "notebook.ipynb")
    assert close(ast.literal_eval(seen.partition("\n")[2]), sample["output"])  # below the example
    fields = json.loads((model / "config.json").read_text())["fields"]
    assert {field["name"]: field["type"] for field in fields} | {"id": "int64"} == {
        "id": "int64",
        "area (m²)": "float64",
        'kind "A", [x]': "category",
        "sold on": "date",
        "at": "date",
        "garden": "uint8",
        "rooms": "int64",
        **({OWN["tabular-regression"]: "int64"} if "class" in task else {OWN["tabular-classification"]: "category"}),
    }
    with deployed(tmp_path, predict, model) as served:
        pipe = Algorithmia.client(KEY, served.url).algo("me/demo").pipe
        assert close(pipe(sample["input"]).result, sample["output"])
        lacking = pipe({"at": "12:30", "garden": True}).result
        assert pipe({"at": "12:30", "garden": "true"}).result == lacking
        assert (
            pipe({"at": "1970-01-01T12:30:00Z", "garden": 1, 'kind "A", [x]': "castle", "rooms": None}).result
            == lacking
        )
        for bad, reason in (
            ({"sold on": "yesterday"}, "expected a date"),
            ({"rooms": "two"}, "a number"),
            ("x", "a record"),
        ):
            with pytest.raises(Exception, match=reason):
                pipe(bad)
    seen = predict.watch({'kind "A", [x]': "castle", "rooms": 3}, sample["output"], predict.load(model))
    assert seen['kind "A", [x]'] == "castle" and seen["rooms"] == 3.0 and "at" not in seen


@pytest.mark.slow
def test_the_exported_trees_split_where_the_trained_ones_do(own: tuple[str, Path]) -> None:
    """This includes numbers beyond the precision of float32, and rows with missing values."""
    task, folder = own
    science, parts = splits(task, folder)
    model = next((folder / "models").iterdir())
    loaded, features = science.predict.load(model), parts["train"]["features"].copy()
    features[np.random.default_rng(0).random(features.shape) < 0.3] = np.nan
    [answers] = loaded.session.run([science.model.OUTPUT], {"features": features})
    expected = science.model.load(model).predict(features)
    assert np.abs(answers - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1)


@pytest.mark.slow
def test_the_page_gives_the_same_results_as_the_service(own: tuple[str, Path], tmp_path: Path) -> None:
    task, folder = own
    predict, model = importlib.import_module(f"{package(task)}.predict"), next((folder / "models").iterdir())
    sample = json.loads((model / "sample.json").read_text())["input"]
    samples = [sample, {"at": sample["at"]}, {**sample, 'kind "A", [x]': "castle"}]
    web_page(tmp_path, model, SimpleNamespace(samples=samples, title="Houses", cache=ROOT / "build" / "web"))  # type: ignore[arg-type]
    shutil.copy(TASKS / task / "index.html", tmp_path)
    with folder_served(tmp_path) as url:
        page = browse(url, ANSWERS)
        assert faults(url, ANSWERS) == []
    found = json.loads(page.partition('id="answers">')[2].partition("</script>")[0])
    for one, other in zip(found, predict.apply_batch(samples, predict.load(model)), strict=True):
        assert close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("task", NAMES)
def test_memory_for_half_a_million_rows_is_limited(task: str, tmp_path: Path) -> None:
    """The maximum is 0.75 GB, of which an empty training takes 0.5, so that 2 million rows need less than 1.5 GB."""
    chance, rows = np.random.default_rng(0), 500_000
    columns = {f"x{number}": chance.normal(size=rows) for number in range(6)}
    target = columns["x0"] + chance.normal(size=rows) > 0
    table = {**columns, "city": chance.integers(0, 300, rows).astype(str), "y": target.astype(np.int8)}
    pq.write_table(pa.table(table), settings(tmp_path) / "big.parquet")
    for words in (["data", "--from", "big.parquet", "--target", "y"], ["train", "--rounds", "3"]):
        command = [sys.executable, "-c", MEASURED, package(task), *words]
        environ = projects.environment(tmp_path)
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
        assert int(done.stdout.split()[-1]) < 0.75e6, words


@pytest.mark.parametrize("task", NAMES)
def test_a_number_may_be_sent_as_a_boolean_or_its_text(task: str) -> None:
    predict = importlib.import_module(f"{package(task)}.predict")
    field = {"name": "garden", "type": "uint8", "usual": None}
    assert [predict.number(value, field) for value in (True, "true", "True", 1, "1", 1.0)] == [1.0] * 6
    assert [predict.number(value, field) for value in (False, "false", "FALSE", 0, "0")] == [0.0] * 5
    for value in ("yes", [True], {}):
        with pytest.raises(ValueError, match="garden: expected true or false, or a number, got"):
            predict.number(value, field)
        with pytest.raises(ValueError, match="garden: expected a number, got"):
            predict.number(value, {**field, "type": "int64"})


@pytest.mark.parametrize("task", NAMES)
def test_a_category_may_be_sent_as_a_number_but_not_as_a_list(task: str) -> None:
    predict = importlib.import_module(f"{package(task)}.predict")
    field = {"name": "plan", "type": "category", "usual": None, "places": {"a": 0, "7": 1}}
    assert [predict.number(value, field) for value in ("a", 7)] == [0.0, 1.0]
    assert np.isnan([predict.number(value, field) for value in ("b", 8, None, True, 8.0, 7.5)]).all()
    assert predict.number(7.0, field) == 1.0
    truth = {**field, "places": {"true": 0, "unknown": 1}}
    assert [predict.number(value, truth) for value in (True, "true")] == [0.0, 0.0]
    model = SimpleNamespace(fields={"plan": truth})
    assert predict.present_fields({"plan": True}, model) == {"plan": "true"}
    for value in (["a"], {"a": 1}, []):
        with pytest.raises(ValueError, match="plan: expected a text, got"):
            predict.number(value, field)


@pytest.mark.parametrize("task", NAMES)
def test_a_row_without_any_value_is_a_valid_call(task: str) -> None:
    data, predict = (importlib.import_module(f"{package(task)}.{name}") for name in ("data", "predict"))
    columns = {"a": np.array([np.nan, 1.5]), "kind": np.array([-1, 0]), "y": np.array([0, 1])}
    types = {"a": {"type": "float64"}, "kind": {"type": "category", "categories": ["x"]}, "y": {"type": "int64"}}
    split = Split(columns, {"columns": types, "target": "y"})
    assert [data.example(split, row) for row in (0, 1)] == [{"a": None, "kind": None}, {"a": 1.5, "kind": "x"}]
    fields = {field["name"]: {**field, "usual": None, "places": {}} for field in data.fields(split.facts)}
    assert np.isnan(predict.features([data.example(split, 0)], SimpleNamespace(fields=fields))).all()


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("lacking", ["train", "test"])
def test_a_call_without_a_field_is_answered_as_its_median_unless_training_rows_lack_it(
    task: str, lacking: str, tmp_path: Path
) -> None:
    folder, chance = settings(tmp_path), np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        years, noise = chance.integers(1990, 2021, 200), chance.normal(size=200)
        rows = zip(years, noise, years > 2005 if "class" in task else years - 1990 + noise, strict=True)
        lines = [f"{year},{other},{goal}" for year, other, goal in rows]
        lines[0] = lines[0][4 * (split == lacking) :]
        (folder / f"{split}.csv").write_text("\n".join(["year,noise,goal", *lines]) + "\n")
    run(folder, task, "data", "--from", ".", "--target", "goal")
    run(folder, task, "train", "--name", "own", "--rounds", "30")
    run(folder, task, "publish")
    predict = importlib.import_module(f"{package(task)}.predict")
    model = predict.load(folder / "models" / "own")
    usual = model.fields["year"]["usual"]
    assert usual is None if lacking == "train" else 2000 <= usual <= 2010
    without, median = predict.apply_batch([{"noise": 0.1}, {"noise": 0.1, "year": usual or 2005}], model)
    assert (without == median) is (lacking == "test")


@pytest.mark.parametrize("task", NAMES)
def test_a_constant_target_is_rejected(task: str, tmp_path: Path) -> None:
    folder = settings(tmp_path)
    (folder / "same.csv").write_text("a,b\n" + "".join(f"{row},7\n" for row in range(100)))
    printed = run(folder, task, "data", "--from", "same.csv", "--target", "b", code=1)
    assert "b has the value 7 in all rows" in printed


@pytest.mark.parametrize("task", NAMES)
def test_a_folder_without_tables_is_rejected(task: str, tmp_path: Path) -> None:
    folder = settings(tmp_path)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "1.jpg").write_bytes(b"")
    for words in (("photos",), ("photos", "--target", "price")):
        assert "; photos has no table (.parquet, .csv, " in run(folder, task, "data", "--from", *words, code=1)
    printed = run(folder, task, "data", "--from", "photos/cat", code=1)
    assert "photos/cat: no table found; expected a .parquet, .csv, .tsv, .jsonl, .ndjson file" in printed


@pytest.mark.parametrize("task", NAMES)
def test_a_table_without_features_is_rejected(task: str, tmp_path: Path) -> None:
    folder = settings(tmp_path)
    (folder / "one.csv").write_text("b\n" + "1\n2\n" * 50)
    assert "no column of numbers, dates or texts besides b" in run(
        folder, task, "data", "--from", "one.csv", "--target", "b", code=1
    )
