"""The settings of a project, read once: stack.toml < .env < environment < flags."""

import math
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from free_ml_stack.errors import StackError
from free_ml_stack.project.flags import convert, flag, read, unknown

FILE = "stack.toml"
PREFIX = "STACK_"
CLIENTS = {"WANDB_ENTITY": "wandb_entity", "WANDB_PROJECT": "wandb_project"}  # names of W&B's own client
LOCAL_USER = "me"
# Of W&B's client, with what each means here: two are older names.
WANDB_MODES = {
    "online": "online", "offline": "offline", "disabled": "disabled",
    "shared": "online", "dryrun": "offline", "run": "online",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What stack.toml may say, each also as STACK_<NAME> in the environment and as a flag."""

    project: str = flag("", "short name of the project")
    title: str = flag("", "name of the project, as people read it")
    description: str = flag("", "what the project does, in one line")
    author: str = flag("", "who made it")
    license: str = flag("MIT", "license id of code and model")
    storage: str = flag("./store", "URL of the store: algorithmia://, hf://, s3:// or a folder")
    algorithmia_username: str = flag("", "user name at Algorithmia; empty: the local gateway's")
    huggingface_username: str = flag("", "user or organization at Hugging Face")
    wandb_entity: str = flag("", "user or team at Weights & Biases")
    algorithm: str = flag("me/Model", "the deployed algorithm, OWNER/NAME")
    model_repo: str = flag("", "model repository on the Hub, USER/NAME; empty: a local folder")
    wandb_project: str = flag("", "project at Weights & Biases")
    tracker: str = flag("wandb", "where metrics go besides metrics.jsonl", ("wandb", "trackio", "none"))
    patience: float = flag(1.0, "factor of the seconds for which a silent service is waited for")


@dataclass(frozen=True)
class Settings(Options):
    """The options with what the environment adds: keys, their services, and this process's place among others."""

    root: Path = Path()
    credentials: frozenset[str] = frozenset()
    algorithmia_api: str = ""
    algorithmia_api_key: str = field(default="", repr=False)
    wandb_mode: str = ""
    wandb_run: str = ""  # the trial that an agent of W&B has started this process for
    wandb_sweep: str = ""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    restarts: int = 0
    master: str = ""  # the address of the first process
    restartable: bool = False  # whether the launcher is torchrun, which starts them again where one dies

    @property
    def user(self) -> str:
        """The account that `.my` names in the local store."""
        return self.algorithmia_username or LOCAL_USER

    @property
    def command(self) -> str:
        """The console command of the project."""
        return self.project

    @property
    def runs(self) -> Path:
        """The folder of the training runs."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """The folder of the models made ready to publish."""
        return self.root / "models"

    @property
    def private(self) -> Path:
        """The folder that stands in for services without credentials; never committed."""
        return self.root / ".stack"


def load(flags: Mapping[str, Any], start: Path, environ: MutableMapping[str, str] = os.environ) -> Settings:
    """The settings of the project around `start`.

    Names from `.env` are put into `environ` unless set there, so that every tool sees the same.
    Raises StackError for a missing project, unreadable TOML, an unknown name or a bad value.
    """
    from free_ml_stack.credentials import check as credentials  # help should not wait for it
    from free_ml_stack.credentials.surroundings import spare_loopback

    root = find_root(start)
    try:
        dotenv = credentials.read_env_file(root / ".env")
    except (OSError, ValueError) as error:
        raise StackError(f".env: {error}; save it as plain text in UTF-8") from None
    for name, value in dotenv.items():
        if not environ.get(name, "").strip():  # an empty variable counts as absent
            environ[name] = value
    spare_loopback(environ)
    names = {PREFIX + option.name.upper(): option.name for option in fields(Options)}
    layers = (
        _named(FILE, read_toml(root / FILE)),
        {option: environ[name] for name, option in CLIENTS.items() if environ.get(name)},
        {names[name]: environ[name] for name in names if name in environ},
    )
    _refuse_unknown(environ, names)
    _refuse_for_clients(environ)
    options = read(Options, *layers, flags)
    if not 0 < options.patience < math.inf:
        raise StackError(f"patience: expected a number above 0, got {options.patience}")
    key = credentials.find("algorithmia", environ, dotenv)
    return Settings(
        **vars(options),
        root=root,
        credentials=credentials.present(environ, dotenv),
        algorithmia_api=environ.get("ALGORITHMIA_API", key.address if key else ""),
        algorithmia_api_key=key.value if key else "",
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
    """The nearest folder at or above `start` that holds stack.toml; StackError if there is none."""
    for folder in (start.resolve(), *start.resolve().parents):
        if os.path.isfile(folder / FILE):  # noqa: PTH113 - never fails, also where a folder can't be searched
            return folder
    raise StackError(f"no {FILE} in {start} or above it: run this inside a project")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; StackError names the line that does not parse."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # with the mark that Windows' editors put first
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "; save it as plain text in UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise StackError(f"{path.name}: {error}{hint}") from None


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """A number that a launcher puts into the environment."""
    try:
        return int(environ.get(name) or default)
    except ValueError:
        raise StackError(f"{name} in the environment: expected a number, got {environ[name]!r}") from None


def _named(source: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` as they are; an error in one of them names the file it comes from."""
    for name, value in values.items():
        try:
            convert(Options, name, value)
        except StackError as error:
            raise StackError(f"{source}: {error}") from None
    return values


def _refuse_for_clients(environ: Mapping[str, str]) -> None:
    """Tell in one line what the services' clients would tell by a traceback."""
    from free_ml_stack.credentials.keys import ADDRESSES, is_address
    from free_ml_stack.credentials.surroundings import no_number

    for name, _ in ADDRESSES.values():
        if environ.get(name) and not is_address(environ[name]):
            raise StackError(f"{name} in the environment is not a server's address: give it as https://HOST")
    if name := no_number(environ):
        raise StackError(f"{name} in the environment: expected a whole number, got {environ[name]!r}")
    mode = environ.get("WANDB_MODE")
    if mode and mode not in WANDB_MODES:
        raise StackError(f"WANDB_MODE in the environment: expected one of {', '.join(WANDB_MODES)}, got {mode!r}")


def _refuse_unknown(environ: Mapping[str, str], names: Mapping[str, str]) -> None:
    for name in environ:
        if name.startswith(PREFIX) and name not in names:
            raise StackError(f"environment: {unknown(name, list(names))}")
