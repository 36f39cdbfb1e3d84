"""Commands of sweep files: macros are expanded as by W&B's own agent."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from free_ml_stack.sweeps.command import DEFAULT, environment_variables, expand_macros, train_arguments, trial_command
from free_ml_stack.sweeps.sweep_file import parse_sweep

CONFIG: dict[str, Any] = {"lr": 0.1, "deep": {"a": [1, None]}, "flag": True, "off": False, "name": "it's"}
MACROS = (
    "args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags",
    "args_append_hydra", "args_override_hydra", "args_json",
)  # fmt: skip
HEAD = "method: random\nmetric: {name: loss}\nparameters: {lr: {value: 0.1}}\n"


@pytest.mark.parametrize("macro", MACROS)
def test_macros_expand_as_in_the_client(macro: str) -> None:
    from wandb.sdk.launch.sweeps import utils

    theirs = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in CONFIG.items()}})
    assert expand_macros([f"${{{macro}}}"], CONFIG, "p.py", Path("f.json")) == theirs[macro]


def test_environment_variables_expand_inside_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.launch.sweeps import utils

    monkeypatch.setenv("DEPTH", "3")
    monkeypatch.delenv("NOWHERE", raising=False)
    words = ["--depth=${envvar:DEPTH}-${envvar:NOWHERE}", "${envvar:DEPTH}"]
    assert (
        expand_macros(words, {}, "", Path("f")) == utils.create_sweep_command(list(words)) == ["--depth=3-NOWHERE", "3"]
    )


def test_the_default_command_equals_the_clients_without_env_on_windows() -> None:
    from wandb.wandb_agent import Agent

    assert list(DEFAULT) == Agent.DEFAULT_SWEEP_COMMAND
    words = expand_macros(DEFAULT, {"lr": 1}, "train.py", Path("f.json"))
    assert words == ["/usr/bin/env", sys.executable, "train.py", "--lr=1"]
    assert expand_macros(DEFAULT, {"lr": 1}, "train.py", Path("f.json"), "nt") == words[1:]
    assert expand_macros(["a", "${args_json_file}", "${nothing}"], {}, "", Path("f.json")) == ["a", "f.json"]


def test_the_configuration_of_a_trial_is_written_where_an_agent_writes_it(tmp_path: Path) -> None:
    words, variables = trial_command(parse_sweep(HEAD, "s"), "sweep-1", "0007", CONFIG, "pkg", tmp_path)
    assert words[-2:] == ["--config", str(tmp_path / "config-0007.json")]
    assert json.loads((tmp_path / "config-0007.json").read_text()) == CONFIG
    assert (variables["WANDB_RUN_ID"], variables["WANDB_SWEEP_ID"]) == ("sweep-1-0007", "sweep-1")
    content = yaml.safe_load(Path(variables["WANDB_SWEEP_PARAM_PATH"]).read_text())
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
    assert train_arguments(words, "pkg") == found


@pytest.mark.parametrize("program", ["", "src/pkg/train.py", "src\\pkg\\train.py"])
def test_the_default_command_is_the_projects_train(tmp_path: Path, program: str) -> None:
    plan = parse_sweep(HEAD + (f"program: '{program}'\n" if program else ""), "s")
    assert train_arguments(trial_command(plan, "s", "r", {"lr": 1}, "pkg", tmp_path)[0], "pkg")
    other = parse_sweep(HEAD + "program: other.py\n", "s")
    assert trial_command(other, "s", "r", {"lr": 1}, "pkg", tmp_path)[0][-2:] == ["other.py", "--lr=1"]


def test_environment_variables_are_restored_after_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "before")
    monkeypatch.delenv("GONE", raising=False)
    with environment_variables({"HERE": "1", "GONE": "2"}):
        assert (os.environ["HERE"], os.environ["GONE"]) == ("1", "2")
    assert os.environ["HERE"] == "before"
    assert "GONE" not in os.environ
