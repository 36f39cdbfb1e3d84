"""The library is independent of the task: it runs an unusual one, and its code names none."""

import ast
import json
import re
import signal
from pathlib import Path

import forking
import fresh
import projects
import pytest
from huggingface_hub import ModelCard
from waiting import until

import free_ml_stack
from free_ml_stack.deployment.answering import close

TESTS = Path(__file__).parent.parent
# Words in identifiers and texts; comments and docstrings may give examples.
OF_TASKS = {
    *("label", "labels", "image", "images", "pixel", "pixels", "digit", "digits", "sentence", "species", "carat"),
    *("accuracy", "f1", "rmse", "logit", "logits", "softmax", "probability", "probabilities", "confidence"),
    *("tokenizer", "timm", "transformers", "lightgbm", "sklearn", "grayscale", "rgb"),
}
# Terms of W&B, trackio, Algorithmia, Prometheus, Pillow, IPython and the Hub, and digits of numbers.
OF_OTHERS = {
    "launch/jobs.py": {"label"},  # of the Hub: the unit of a price
    "algorithmia/installation.py": {"label"},
    "credentials/check.py": {"digits"},
    "data/hub_card.py": {"image", "label"},
    "data/source.py": {"image"},  # a media type of MIME
    "deployment/installation.py": {"label"},
    "gateway/algorithms/management.py": {"label", "digits"},
    "gateway/dashboard.py": {"labels", "digits"},
    "gateway/http.py": {"digits"},
    "notebook/project.py": {"image"},
    "sweeps/search_space.py": {"probabilities"},
    "sweeps/sweep_file.py": {"probabilities", "digits", "image"},
    "tracking/trackio_tracker.py": {"image"},
    "tracking/wandb_tracker.py": {"image"},
    "training/outcome.py": {"image", "pixels"},
    "training/run.py": {"digits"},
}


def run(folder: Path, *words: str, code: int = 0) -> str:
    environ = projects.environment(folder, PYTHONPATH=str(TESTS))
    process = forking.start(["-m", "odd", *words], folder, environ)
    printed, complaint = process.communicate(timeout=300)
    assert process.returncode == code, printed + complaint
    return printed + complaint


@pytest.mark.slow
def test_an_unusual_task_runs_through_all_commands(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text(
        'project = "odd"\nstorage = "algorithmia://.my/odd"\nalgorithm = "me/Odd"\nlicense = "MIT"\n'
    )
    run(tmp_path, "data")
    assert "Test RMSE 0." in run(tmp_path, "train", "--name", "one")
    environ = projects.environment(tmp_path, PYTHONPATH=str(TESTS))
    words = ["-m", "odd", "train", "--name", "two", "--checkpoint-steps", "1"]
    stopped = forking.start(words, tmp_path, environ)
    until(lambda: any((tmp_path / "runs" / "two").glob("checkpoints/step-*")))
    stopped.send_signal(signal.SIGKILL)
    stopped.communicate(timeout=60)
    run(tmp_path, "train", "--name", "two", "--checkpoint-steps", "1")
    one, two = ((tmp_path / "runs" / name / "model" / "weights.json").read_bytes() for name in ("one", "two"))
    assert one == two

    run(tmp_path, "publish", "--run", "one")
    card = ModelCard.load(tmp_path / "models" / "one" / "README.md")
    assert card.data.pipeline_tag == "tabular-regression"
    assert card.data.eval_results and card.data.eval_results[0].metric_type == "rmse"
    sample = json.loads((tmp_path / "models/one/sample.json").read_text())  # its predict.py imports its data.py
    assert close(ast.literal_eval(fresh.use(str(card), tmp_path / "models/one")), sample["output"])
    run(tmp_path, "deploy")
    answer = json.loads(run(tmp_path, "predict", '{"note": "sun sun drum", "length": 3}').rpartition("}")[0] + "}")
    assert answer["warm"] == pytest.approx(4, abs=0.5)
    assert answer["loud"] == pytest.approx(2, abs=0.5)
    assert "expected a note and its length" in run(tmp_path, "predict", '"sun"', code=1)
    assert "Drift:" in run(tmp_path, "monitor")
    known = json.loads((tmp_path / "models" / "one" / "reference.json").read_text())
    assert set(known["numbers"]) == {"warm", "loud"}
    assert set(known["categories"]) == {"kind"}


def words_of(text: str) -> set[str]:
    """The words of all names and texts in code, except docstrings."""
    tree, found = ast.parse(text), set()
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, described) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found |= set(re.findall(r"[a-z0-9]+", node.value.lower()))
        for name in ("id", "attr", "arg", "name"):
            if isinstance(value := getattr(node, name, None), str):
                found |= set(re.split(r"[_.]", value.lower()))
    return found


def test_the_library_contains_no_terms_of_a_task() -> None:
    folder = Path(str(free_ml_stack.__file__)).parent
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    named = {
        name: found
        for name, path in files.items()
        if not name.startswith("evaluation/")
        if (found := (OF_TASKS & words_of(path.read_text("utf-8"))) - OF_OTHERS.get(name, set()))
    }
    assert named == {}
