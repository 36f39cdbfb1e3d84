"""The command of a trial: the words of a sweep file with their macros filled in, as W&B's agent does it.

Source: `wandb/sdk/launch/sweeps/utils.py` and `wandb/wandb_agent.py` of the client; a test holds the two side by side.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from free_ml_stack.sweeps.search_space import Sweep

DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
ENV = "/usr/bin/env"


@dataclass(frozen=True)
class Call:
    """How a trial is called: its words, and the variables that an agent of W&B would set for it."""

    words: list[str]
    variables: dict[str, str]


def call(plan: Sweep, sweep: str, run: str, config: Mapping[str, Any], package: str, folder: Path) -> Call:
    """The call of the trial `run`; its configuration is written to `folder` in both forms that W&B knows.

    Without a command, or a program of the user's own, it is the project's `train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_file, yaml_file = folder / f"config-{run}.json", folder / f"config-{run}.yaml"
    json_file.write_text(json.dumps(config), encoding="utf-8")
    wrapped = {"wandb_version": 1, **{name: {"value": value} for name, value in config.items()}}
    yaml_file.write_text(yaml.safe_dump(wrapped), encoding="utf-8")
    words = filled(plan.command or default(plan.program, package), config, plan.program, json_file)
    variables = {"WANDB_RUN_ID": f"{sweep}-{run}", "WANDB_SWEEP_ID": sweep}
    return Call(words, {**variables, "WANDB_SWEEP_PARAM_PATH": str(yaml_file)})


def default(program: str, package: str) -> tuple[str, ...]:
    """The command of a sweep file that has none."""
    if program and not program.replace("\\", "/").endswith(f"{package}/train.py"):
        return DEFAULT
    return ("${env}", "${interpreter}", "-m", package, "train", "--config", "${args_json_file}")


def filled(
    command: Sequence[str], config: Mapping[str, Any], program: str, json_file: Path, platform: str = os.name
) -> list[str]:
    """A command's words with its macros replaced; an unknown macro is nothing, as in W&B's agent."""
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


def own_arguments(words: Sequence[str], package: str) -> list[str] | None:
    """What a command hands to this project's `train`, None where it is another program."""
    rest = list(words[1:] if words and Path(words[0]).name == "env" else words)
    python = bool(rest) and Path(rest[0]).name.startswith("python")
    return rest[4:] if python and rest[1:4] == ["-m", package, "train"] else None


def is_own(plan: Sweep, package: str) -> bool:
    """Whether a sweep's trials are runs of this project's `train`."""
    words = filled(plan.command or default(plan.program, package), {}, plan.program, Path())
    return own_arguments(words, package) is not None


@contextmanager
def variables(given: Mapping[str, str]) -> Iterator[None]:
    """A block in which the environment has these variables."""
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
