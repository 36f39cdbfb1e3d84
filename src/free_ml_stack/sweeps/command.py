"""The command of a trial: the command of a sweep file with its macros expanded, as W&B's agent does.

Source: `wandb/sdk/launch/sweeps/utils.py` and `wandb/wandb_agent.py` of the client; a test compares the results.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from free_ml_stack.sweeps.search_space import Sweep

DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
ENV = "/usr/bin/env"


def trial_command(
    plan: Sweep, sweep: str, run: str, config: Mapping[str, Any], package: str, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """Return the words of the command of the trial `run`, and the environment variables that W&B's agent sets for it.

    Its configuration is written to `folder` as W&B's JSON and YAML files. If the sweep file names neither a command nor
    another program, this is the project's `train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_file, yaml_file = folder / f"config-{run}.json", folder / f"config-{run}.yaml"
    json_file.write_text(json.dumps(config), encoding="utf-8")
    wrapped = {"wandb_version": 1, **{name: {"value": value} for name, value in config.items()}}
    yaml_file.write_text(yaml.safe_dump(wrapped), encoding="utf-8")
    words = expand_macros(plan.command or default_command(plan.program, package), config, plan.program, json_file)
    variables = {"WANDB_RUN_ID": f"{sweep}-{run}", "WANDB_SWEEP_ID": sweep}
    return words, {**variables, "WANDB_SWEEP_PARAM_PATH": str(yaml_file)}


def default_command(program: str, package: str) -> tuple[str, ...]:
    """Return the default command, for a sweep file without one."""
    if program and not program.replace("\\", "/").endswith(f"{package}/train.py"):
        return DEFAULT
    return ("${env}", "${interpreter}", "-m", package, "train", "--config", "${args_json_file}")


def expand_macros(
    command: Sequence[str], config: Mapping[str, Any], program: str, json_file: Path, platform: str = os.name
) -> list[str]:
    """Expand the macros of a command; unknown macros are removed, as in W&B's agent."""
    pairs = {name: f"{name}={value}" for name, value in config.items()}
    switches = [
        f"--{name}" if value is True else f"--{pairs[name]}" for name, value in config.items() if value is not False
    ]
    macros = {
        "env": [] if platform == "nt" else [ENV],
        "interpreter": [sys.executable],
        "program": [program],
        "args": [f"--{pair}" for pair in pairs.values()],
        "args_no_equals": [word for name, value in config.items() for word in (f"--{name}", str(value))],
        "args_no_hyphens": list(pairs.values()),
        "args_no_boolean_flags": switches,
        "args_append_hydra": [f"+{pair}" for pair in pairs.values()],
        "args_override_hydra": [f"++{pair}" for pair in pairs.values()],
        "args_json": [json.dumps(config)],
        "args_json_file": [str(json_file)],
    }
    words: list[str] = []
    for chunk in command:
        word = VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), str(chunk))
        words += macros.get(word[2:-1], []) if word.startswith("${") and word.endswith("}") else [word]
    return words


def train_arguments(words: Sequence[str], package: str) -> list[str] | None:
    """Return the arguments of a command for this project's `train`; None if it runs another program."""
    rest = list(words[1:] if words and Path(words[0]).name == "env" else words)
    python = bool(rest) and Path(rest[0]).name.startswith("python")
    return rest[4:] if python and rest[1:4] == ["-m", package, "train"] else None


def runs_train(plan: Sweep, package: str) -> bool:
    """Return whether the trials of a sweep run this project's `train`."""
    words = expand_macros(plan.command or default_command(plan.program, package), {}, plan.program, Path())
    return train_arguments(words, package) is not None


@contextmanager
def environment_variables(given: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a block."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
