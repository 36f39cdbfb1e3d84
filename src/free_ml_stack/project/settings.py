"""Settings of a project, in increasing precedence from stack.toml, .env, the environment and flags."""

import math
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import convert, flag, read, unknown

FILE = "stack.toml"
PREFIX = "STACK_"
CLIENTS = {"WANDB_ENTITY": "wandb_entity", "WANDB_PROJECT": "wandb_project"}  # variables of W&B's client
LOCAL_USER = "me"
# Settings that become parts of paths and URLs: the valid values and their description.
NAMES = {
    "algorithm": (re.compile(r"\w[\w.-]*/[A-Za-z][A-Za-z0-9_-]{0,63}"), "OWNER/NAME, NAME in A-Z, a-z, 0-9, _ and -"),
    "model_repo": (re.compile(r"([\w.-]+/[\w.-]+)?"), "USER/NAME"),
    "algorithmia_username": (re.compile(r"(\w[\w.-]*)?"), "letters, 0-9, _, . and -"),
}
# Modes of W&B's client, two of them deprecated, and their meaning here.
WANDB_MODES = {
    "online": "online", "offline": "offline", "disabled": "disabled",
    "shared": "online", "dryrun": "offline", "run": "online",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Options:
    """Settings of stack.toml, which can also be set as STACK_<NAME> in the environment or as a flag."""

    project: str = flag("", "short name of the project")
    title: str = flag("", "display name of the project")
    description: str = flag("", "description of the project, in one line")
    author: str = flag("", "author of the project")
    license: str = flag("MIT", "license id of code and model")
    storage: str = flag("./store", "URL of the store: algorithmia://, hf://, s3:// or a folder")
    algorithmia_username: str = flag("", "user name at Algorithmia; empty: that of the local gateway")
    huggingface_username: str = flag("", "user or organization at Hugging Face")
    wandb_entity: str = flag("", "user or team at Weights & Biases")
    algorithm: str = flag("me/Model", "the deployed algorithm, OWNER/NAME")
    model_repo: str = flag("", "model repository on the Hub, USER/NAME; empty: a local folder")
    new_version: str = flag("", "model repository on the Hub that replaces this one, USER/NAME; for the card")
    wandb_project: str = flag("", "project at Weights & Biases")
    tracker: str = flag("wandb", "tracker that receives metrics besides metrics.jsonl", ("wandb", "trackio", "none"))
    cache_bytes: int = flag(
        0, "bytes of a data set above which it stays in the store behind a cache of that size; 0: none"
    )
    patience: float = flag(1.0, "factor for the timeouts of services")


@dataclass(frozen=True)
class Settings(Options):
    """The options, and values from the environment: keys, servers, and the rank of this process."""

    root: Path = Path()
    credentials: frozenset[str] = frozenset()
    algorithmia_api: str = ""
    algorithmia_api_key: str = field(default="", repr=False)
    wandb_mode: str = ""
    wandb_run: str = ""  # id of the trial, if W&B's agent started this process
    wandb_sweep: str = ""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    restarts: int = 0
    master: str = ""  # address of the first process
    restartable: bool = False  # whether torchrun restarts the processes if one dies

    @property
    def user(self) -> str:
        """Return the account of `.my` in the local store."""
        return self.algorithmia_username or LOCAL_USER

    @property
    def command(self) -> str:
        """Return the console command of the project."""
        return self.project

    @property
    def runs(self) -> Path:
        """Return the folder of the training runs."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """Return the folder of the models to publish."""
        return self.root / "models"

    @property
    def private(self) -> Path:
        """Return the folder that replaces services without credentials; it is never committed."""
        return self.root / ".stack"


def load(flags: Mapping[str, Any], start: Path, environ: MutableMapping[str, str] = os.environ) -> Settings:
    """Load the settings of the project that contains `start`.

    Variables of `.env` are added to `environ` unless they are set, so that all clients see the same values. Raises
    StackError if there is no project, the TOML is invalid, or a name or value is invalid.
    """
    from free_ml_stack.credentials import check as credentials  # imported here to keep --help fast
    from free_ml_stack.credentials.environment import bypass_proxy_for_loopback

    root = find_root(start)
    try:
        dotenv = credentials.read_env_file(root / ".env")
    except (OSError, ValueError) as error:
        raise StackError(f".env: {error}; save it as UTF-8 text") from None
    for name, value in dotenv.items():
        if not environ.get(name, "").strip():  # an empty variable counts as absent
            environ[name] = value
    bypass_proxy_for_loopback(environ)
    names = {PREFIX + option.name.upper(): option.name for option in fields(Options)}
    variables = [(name, option) for name, option in CLIENTS.items() if environ.get(name)]
    variables += [(name, option) for name, option in names.items() if name in environ]
    layers = [
        _check_source(FILE, read_toml(root / FILE)),
        *(_check_source(f"environment variable {name}", {option: environ[name]}) for name, option in variables),
    ]
    _check_unknown(environ, names)
    _check_client_variables(environ)
    options = read(Options, *layers, flags)
    for name, (valid, expected) in NAMES.items():
        if not valid.fullmatch(value := getattr(options, name)):
            raise StackError(f"{name}: expected {expected}, got {value!r}")
    if not 0 < options.patience < math.inf:
        raise StackError(f"patience: expected a number above 0, got {options.patience}")
    if options.cache_bytes < 0:
        raise StackError(f"cache_bytes: expected 0 or more, got {options.cache_bytes}")
    key = credentials.find("algorithmia", environ, dotenv)
    return Settings(
        **vars(options),
        root=root,
        credentials=credentials.present(environ, dotenv),
        algorithmia_api=environ.get("ALGORITHMIA_API") or (key.address if key.value else ""),
        algorithmia_api_key=key.value,
        wandb_mode=WANDB_MODES.get(environ.get("WANDB_MODE", ""), ""),
        wandb_run=environ.get("WANDB_RUN_ID", "") if environ.get("WANDB_SWEEP_ID") else "",
        wandb_sweep=environ.get("WANDB_SWEEP_ID", ""),
        rank=_number(environ, "RANK", 0),
        local_rank=_number(environ, "LOCAL_RANK", 0),
        world_size=_number(environ, "WORLD_SIZE", 1),
        restarts=_number(environ, "TORCHELASTIC_RESTART_COUNT", 0),
        master=environ.get("MASTER_ADDR", ""),
        restartable=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def find_root(start: Path) -> Path:
    """Return the nearest folder at or above `start` with a stack.toml. Raises StackError without one."""
    for folder in (start.resolve(), *start.resolve().parents):
        if os.path.isfile(folder / FILE):  # noqa: PTH113 - unlike is_file, never raises PermissionError
            return folder
    raise StackError(f"no {FILE} in {start} or its parents; run this inside a project")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises StackError with the line of a syntax error."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows add a byte order mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "; save it as UTF-8 text" if isinstance(error, UnicodeDecodeError) else ""
        raise StackError(f"{path.name}: {error}{hint}") from None


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a number that torchrun sets in the environment."""
    try:
        return int(environ.get(name) or default)
    except ValueError:
        raise StackError(f"environment variable {name}: expected a number, got {environ[name]!r}") from None


def _check_source(source: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check `values` and return them. Raises StackError with the name of the file."""
    for name, value in values.items():
        try:
            convert(Options, name, value)
        except StackError as error:
            raise StackError(f"{source}: {error}") from None
    return values


def _check_client_variables(environ: Mapping[str, str]) -> None:
    """Raise StackError for variables on which the services' clients would fail with a traceback."""
    from free_ml_stack.credentials.environment import invalid_number
    from free_ml_stack.credentials.keys import ADDRESSES, is_address

    for name, _ in ADDRESSES.values():
        if environ.get(name) and not is_address(environ[name]):
            raise StackError(f"environment variable {name}: expected a URL such as https://HOST")
    if name := invalid_number(environ):
        raise StackError(f"environment variable {name}: expected an integer, got {environ[name]!r}")
    mode = environ.get("WANDB_MODE")
    if mode and mode not in WANDB_MODES:
        raise StackError(f"environment variable WANDB_MODE: expected one of {', '.join(WANDB_MODES)}, got {mode!r}")


def _check_unknown(environ: Mapping[str, str], names: Mapping[str, str]) -> None:
    for name in environ:
        if name.startswith(PREFIX) and name not in names:
            raise StackError(f"environment: {unknown(name, list(names))}")
