"""A job: the command of the project that an engine runs elsewhere, checked before anything is written or sent."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from free_ml_stack.credentials import keys
from free_ml_stack.errors import StackError
from free_ml_stack.notebook.packages import require_portable
from free_ml_stack.project.arguments import chosen_run
from free_ml_stack.project.flags import read, read_json
from free_ml_stack.project.settings import FILE, PREFIX, Options, read_toml
from free_ml_stack.storage import stores
from free_ml_stack.storage.atomic import replace

if TYPE_CHECKING:
    from argparse import Namespace

    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

PASSWORDS = {"postgresql": "PGPASSWORD"}  # variables of the databases' clients
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class Job:
    """A command of a project: its `words` after `python -m PACKAGE`, a `name` for its files, and its settings.

    `study` is the storage of a sweep's trials, empty for `train` and for a sweep at W&B.
    """

    package: str
    words: tuple[str, ...]
    name: str
    settings: "Settings"
    study: str = ""

    @property
    def trains(self) -> bool:
        """Return whether the command is one training, in processes that form a group; otherwise it is a sweep."""
        return self.words[0] == "train"

    def line(self) -> str:
        """Return the command for `python -m`, quoted for a shell."""
        return shlex.join((self.package, *self.words))

    def write(self, ending: str, text: str) -> Path:
        """Write the file of an engine into the folder of the runs; return its path."""
        path = self.settings.runs / f"{self.name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text.encode())
        return path

    def variables(self) -> dict[str, str]:
        """Return the settings that differ from stack.toml, as variables of the environment."""
        file = read_toml(self.settings.root / FILE)
        values = {field.name: getattr(self.settings, field.name) for field in fields(Options)}
        defaults = vars(read(Options, file))
        changed = {PREFIX + name.upper(): str(value) for name, value in values.items() if value != defaults[name]}
        if self.settings.algorithmia_api:
            changed["ALGORITHMIA_API"] = self.settings.algorithmia_api
        return changed

    def secrets(self) -> list[str]:
        """Return the names of the variables with keys that the command needs elsewhere."""
        service = stores.parse(self.settings.storage)[0]
        services = [service] if service in keys.SECRET else []
        if any("hf://" in word for word in self.words) and "huggingface" in self.settings.credentials:
            services.append("huggingface")
        if self.settings.tracker == "wandb" and "wandb" in self.settings.credentials:
            services.append("wandb")
        names = [*(S3_SECRETS if service == "s3" else ()), *(keys.SECRET[name] for name in dict.fromkeys(services))]
        database = scheme(self.study)
        return [*names, PASSWORDS[database]] if database in PASSWORDS else names

    def extras(self) -> list[str]:
        """Return the extras of the project that the command needs elsewhere."""
        needed = {
            "postgres": scheme(self.study) == "postgresql",
            "s3": stores.parse(self.settings.storage)[0] == "s3",
            "trackio": self.settings.tracker == "trackio",
        }
        return [name for name, is_needed in needed.items() if is_needed]

    def secret_values(self) -> dict[str, str]:
        """Return the secrets with their values. Raises StackError if one is not set."""
        stored = {variable: service for service, variable in keys.SECRET.items()}
        values = {}
        for name in self.secrets():
            values[name] = keys.find(stored[name], os.environ).value if name in stored else os.environ.get(name, "")
            if not values[name]:
                raise StackError(f"{name}: expected the secret in the environment or .env")
        return values

    def require_remote(self) -> None:
        """Raise StackError if the library, the store or the trials are where no other machine reaches them."""
        require_portable(self.settings.root)
        service = stores.parse(self.settings.storage)[0]
        if not service or not stores.connected(service, self.settings):
            raise StackError(
                f"storage: expected a store that another machine reaches, got {self.settings.storage}"
                f'{" without a key" if service else ""}; set `storage = "hf://buckets/USER/NAME"` and log in'
            )
        if self.study and ("://" not in self.study or self.study.startswith("sqlite")):
            raise StackError(f"--study: expected a database that another machine reaches, got {self.study}")


def train_job(science: "Science", settings: "Settings", args: "Namespace") -> Job:
    """Return the job of `train` with parsed arguments, with a name by which it is resumed and all settings as flags.

    Raises StackError for an invalid name or setting.
    """
    name = chosen_run(args, f"{slug(settings.project)}-{args.now}")
    values: dict[str, Any] = read_json(args.config) if args.config else {}
    names = {field.name for field in fields(science.config)}
    values |= {key: value for key, value in vars(args).items() if key in names}
    read(science.config, values)
    words = ["train", *(("--run", args.run) if args.run else ("--name", name))]
    for key, value in values.items():
        words.append(f"--{key.replace('_', '-')}={value}")
    return Job(science.package, tuple(words), name, settings)


def sweep_job(science: "Science", settings: "Settings", args: "Namespace", words: Sequence[str]) -> Job:
    """Return the job of `sweep` with parsed arguments. Raises StackError unless its trials are shared."""
    if not (args.study or args.join):
        raise StackError("launch: expected `sweep --study URL` or `sweep --join ID`, so that machines share the trials")
    if "://" in args.study and (urlsplit(args.study).password is not None or "password=" in args.study):
        raise StackError(
            "--study: the URL holds a password, which would be written to a file; "
            f"omit it and set {PASSWORDS.get(scheme(args.study), 'the variable of the database client')}"
        )
    file = args.file or Path("sweep.yaml")
    if not args.join and (file.is_absolute() or not (settings.root / file).is_file()):
        raise StackError(f"--file: expected a path of a file from the project's folder, got {file}")
    name = f"{slug(settings.project)}-sweep-{args.now}"
    return Job(science.package, tuple(words), name, settings, args.study)


def scheme(url: str) -> str:
    """Return the kind of database in a URL, without a driver; empty for a folder."""
    return urlsplit(url).scheme.partition("+")[0]


def slug(text: str) -> str:
    """Return a name in lower-case letters, digits and hyphens, as all engines accept it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "job"


def as_yaml(document: Mapping[str, Any]) -> str:
    """Format a document as YAML, in its own order, with texts of several lines as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(dict(document), Dumper=Dumper, sort_keys=False, width=1000, allow_unicode=True)
