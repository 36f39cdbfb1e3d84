"""The command of a sweep file: its macros mean what they mean to W&B's own agent."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils
from wandb.wandb_agent import Agent

from free_ml_stack.sweeps.command import DEFAULT, call, filled, own_arguments, variables
from free_ml_stack.sweeps.sweep_file import parse_sweep

CONFIG: dict[str, Any] = {"lr": 0.1, "deep": {"a": [1, None]}, "flag": True, "off": False, "name": "it's"}
MACROS = (
    "args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags",
    "args_append_hydra", "args_override_hydra", "args_json",
)  # fmt: skip
HEAD = "method: random\nmetric: {name: loss}\nparameters: {lr: {value: 0.1}}\n"


@pytest.mark.parametrize("macro", MACROS)
def test_each_macro_gives_what_the_client_gives(macro: str) -> None:
    theirs = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in CONFIG.items()}})
    assert filled([f"${{{macro}}}"], CONFIG, "p.py", Path("f.json")) == theirs[macro]


def test_variables_of_the_environment_stand_inside_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTH", "3")
    monkeypatch.delenv("NOWHERE", raising=False)
    words = ["--depth=${envvar:DEPTH}-${envvar:NOWHERE}", "${envvar:DEPTH}"]
    assert filled(words, {}, "", Path("f")) == utils.create_sweep_command(list(words)) == ["--depth=3-NOWHERE", "3"]


def test_the_default_is_the_clients_and_windows_has_no_env() -> None:
    assert list(DEFAULT) == Agent.DEFAULT_SWEEP_COMMAND
    words = filled(DEFAULT, {"lr": 1}, "train.py", Path("f.json"))
    assert words == ["/usr/bin/env", sys.executable, "train.py", "--lr=1"]
    assert filled(DEFAULT, {"lr": 1}, "train.py", Path("f.json"), "nt") == words[1:]
    assert filled(["a", "${args_json_file}", "${nothing}"], {}, "", Path("f.json")) == ["a", "f.json"]


def test_a_trial_finds_its_configuration_where_an_agent_puts_it(tmp_path: Path) -> None:
    called = call(parse_sweep(HEAD, "s"), "sweep-1", "0007", CONFIG, "pkg", tmp_path)
    assert called.words[-2:] == ["--config", str(tmp_path / "config-0007.json")]
    assert json.loads((tmp_path / "config-0007.json").read_text()) == CONFIG
    assert (called.variables["WANDB_RUN_ID"], called.variables["WANDB_SWEEP_ID"]) == (
        "sweep-1-0007",
        "sweep-1",
    )
    content = yaml.safe_load(Path(called.variables["WANDB_SWEEP_PARAM_PATH"]).read_text())
    assert content.pop("wandb_version") == 1
    assert {name: item["value"] for name, item in content.items()} == CONFIG


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["/usr/bin/env", "python", "-m", "pkg", "train", "--lr=1"], ["--lr=1"]),
        (["python3.12", "-m", "pkg", "train"], []),
        (["python", "-m", "pkg", "data"], None),
        (["torchrun", "-m", "pkg", "train"], None),
        (["python", "train.py"], None),
        ([], None),
    ],
)
def test_the_projects_own_train_is_recognised(words: list[str], found: list[str] | None) -> None:
    assert own_arguments(words, "pkg") == found


@pytest.mark.parametrize("program", ["", "src/pkg/train.py", "src\\pkg\\train.py"])
def test_without_a_command_it_is_the_projects_train(tmp_path: Path, program: str) -> None:
    plan = parse_sweep(HEAD + (f"program: '{program}'\n" if program else ""), "s")
    assert own_arguments(call(plan, "s", "r", {"lr": 1}, "pkg", tmp_path).words, "pkg")
    other = parse_sweep(HEAD + "program: other.py\n", "s")
    assert call(other, "s", "r", {"lr": 1}, "pkg", tmp_path).words[-2:] == ["other.py", "--lr=1"]


def test_variables_are_as_before_after_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "before")
    monkeypatch.delenv("GONE", raising=False)
    with variables({"HERE": "1", "GONE": "2"}):
        assert (os.environ["HERE"], os.environ["GONE"]) == ("1", "2")
    assert os.environ["HERE"] == "before"
    assert "GONE" not in os.environ
