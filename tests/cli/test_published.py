"""The default model of `deploy` and `predict` is the latest published one."""

import os
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from free_ml_stack.algorithmia import calls
from free_ml_stack.cli.commands.delivery import predict, published_model
from free_ml_stack.cli.demo import shortened
from free_ml_stack.errors import StackError
from free_ml_stack.project.settings import Settings


def publish(settings: Settings, name: str, at: float) -> None:
    manifest = settings.models / name / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("{}")
    os.utime(manifest, (at, at))


def test_the_latest_published_model_is_the_default(tmp_path: Path) -> None:
    settings = Settings(project="digits", root=tmp_path)
    for number, name in enumerate(("second", "third", "first")):
        publish(settings, name, 1000.0 + number)
    assert published_model(settings, "").name == "first"
    assert published_model(settings, "third").name == "third"
    publish(settings, "second", 2000.0)
    assert published_model(settings, "").name == "second"


def test_answers_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(calls, "start_gateway", lambda *_: nullcontext())
    monkeypatch.setattr(calls, "call_algorithm", lambda settings, values, version: values)
    settings: Any = SimpleNamespace(algorithmia_api="http://127.0.0.1:1", command="digits")
    predict(SimpleNamespace(), settings, Namespace(input='{"found": "猫 🐶"}', version=""))  # type: ignore[arg-type]
    assert '"found": "猫 🐶"' in capsys.readouterr().out
    assert shortened({"found": "猫"}) == '{"found": "猫"}'


def test_an_empty_text_is_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(calls, "start_gateway", lambda *_: nullcontext())
    monkeypatch.setattr(calls, "call_algorithm", lambda settings, values, version: seen.append(values) or values)
    settings: Any = SimpleNamespace(algorithmia_api="http://127.0.0.1:1", command="digits")
    predict(SimpleNamespace(), settings, Namespace(input="", version=""))  # type: ignore[arg-type]
    assert seen == [[""]]


def test_an_unpublished_model_is_reported_with_the_command(tmp_path: Path) -> None:
    settings = Settings(project="digits", root=tmp_path)
    with pytest.raises(StackError, match="no trained model; run `digits train`"):
        published_model(settings, "")
    run = settings.runs / "first" / "result.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (settings.runs / "latest").write_text("first")
    with pytest.raises(StackError, match="no published model; run `digits publish`"):
        published_model(settings, "")
    (settings.models / "torn").mkdir(parents=True)
    with pytest.raises(StackError, match="no published model torn; run `digits publish --run torn`"):
        published_model(settings, "torn")
