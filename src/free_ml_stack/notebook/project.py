"""The functions of the notebook: packages, keys, commands, live curves.

Standard library only until the packages are installed.
"""

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.console import say
from free_ml_stack.errors import StackError
from free_ml_stack.notebook import packages
from free_ml_stack.notebook.secret_stores import secrets
from free_ml_stack.processes import INTERRUPT, OWN_GROUP
from free_ml_stack.project.flags import read
from free_ml_stack.project.science import Science
from free_ml_stack.project.settings import load

if TYPE_CHECKING:
    from free_ml_stack.data.split import Split

KEYS = ("WANDB_API_KEY", "HF_TOKEN", "ALGORITHMIA_API", "ALGORITHMIA_API_KEY")
REDRAW_SECONDS = 1.0  # seconds between two updates of the curves
GIGA = 2**30


class CellFailedError(StackError):
    """A command failed and has printed the error: a notebook shows no traceback for it."""

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]


class Project:
    """The project of a notebook; a call runs a command, given by its words.

    `package` is the import name of the project's package. Raises StackError without a stack.toml in the folder
    or above it.
    """

    def __init__(self, package: str, environ: MutableMapping[str, str] = os.environ) -> None:
        self.science, self.environ = Science(package), environ
        self.root = load({}, Path.cwd()).root
        self.started = time.monotonic()
        self.sums: dict[str, str] = {}  # checksums of the data set: as read, and as used for training
        paths = [str(self.root / "src"), *filter(None, [environ.get("PYTHONPATH")])]
        environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # for commands: it is not installed

    def __call__(self, *words: object) -> None:
        """Run a command of the project and print its output. Raises CellFailedError if it fails."""
        self._run([str(word) for word in words])

    def install(self) -> None:
        """Install missing packages. Raises CellFailedError if that would change torch or numpy."""
        try:
            packages.install(self.root)
        except StackError as error:
            raise CellFailedError(str(error)) from None

    def keys(self) -> None:
        """Copy the keys from the secrets of Colab or Kaggle to the environment; print a line for each."""
        ask = secrets(self.environ)
        for name in KEYS:
            if self.environ.get(name):
                say(f"{name}: from the environment")
                continue
            value, line = ask(name)
            if value:
                self.environ[name] = value
            say(f"{name}: {line}")

    def hardware(self) -> None:
        """Print GPU, memory, and the elapsed time."""
        import torch

        gpu = "none; using the CPU"
        if torch.cuda.is_available():
            unused, built_in = torch.cuda.mem_get_info()
            gpu = f"{torch.cuda.get_device_name()}, {unused / GIGA:.1f} of {built_in / GIGA:.1f} GB free"
        say(f"GPU: {gpu}")
        if hasattr(os, "sysconf"):
            page = os.sysconf("SC_PAGE_SIZE") / GIGA
            free, total = os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
            say(f"Memory: {free:.1f} of {total:.1f} GB free")
        say(f"Time: {time.monotonic() - self.started:.1f} s elapsed")

    def train(self, name: str, tracked: bool = True, **config: object) -> str:
        """Train a run, or resume it, and draw its curves during training; return its id.

        The id is `name` and a hash of the configuration, so that another configuration is another run. Raises
        StackError for an invalid configuration, and CellFailedError if the command fails.
        """
        text = json.dumps(asdict(read(self.science.config, config)), sort_keys=True)
        name = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"
        flags = [f"--{field.replace('_', '-')}={value}" for field, value in config.items()]
        words = ["train", "--name", name, *flags, *([] if tracked else ["--set", "tracker=none"])]
        curves = Curves(self.root / "runs" / name / "metrics.jsonl")
        self._run(words, curves.draw)
        curves.draw()
        return name

    def predict(self) -> None:
        """Call the deployed model; if no server is configured, start a local gateway for the call.

        Raises CellFailedError if the command fails.
        """
        from free_ml_stack.algorithmia.calls import start_gateway

        with start_gateway(self.science, load({}, self.root, self.environ)):
            self("predict")

    def release(self, wanted: bool = True) -> None:
        """Release Colab's machine if `wanted`, which ends the session; keep it if results are stored only there."""
        from free_ml_stack.storage.stores import connected, parse

        settings = load({}, self.root, self.environ)
        service, _ = parse(settings.storage)
        if find_spec("google") is None or find_spec("google.colab") is None:
            say("Not on Colab: end the session where you started it.")
        elif not wanted:
            say("Session kept, which uses GPU time; end it with Runtime > Disconnect and delete runtime.")
        elif not service or not connected(service, settings):
            say("Session kept: its results are stored only on this machine. Download models/, then disconnect.")
        else:
            say("Session ended to release the GPU; the results are in the store.")
            import_module("google.colab.runtime").unassign()

    def model(self, run: str) -> Any:
        """Load the model of a finished run, as model.py's `load` returns it, ready to answer.

        Raises CellFailedError if a split of another data set was read.
        """
        folder = load({}, self.root, self.environ).runs / run
        self._agree(model=json.loads((folder / "result.json").read_text("utf-8"))["data"]["sha256"])
        model = self.science.model.load(folder / "model")
        return model.eval() if hasattr(model, "eval") else model

    def split(self, name: str, rows: int) -> "Split":
        """Read the first rows of a split of the data set: its columns (rows, …) by name.

        Raises StackError if there is no data set, and CellFailedError if a model of another one was loaded.
        """
        from free_ml_stack.data import dataset
        from free_ml_stack.storage.stores import open_store

        settings = load({}, self.root, self.environ)
        splits, facts = dataset.load(self.science, settings, open_store(settings.storage, settings))
        self._agree(split=dataset.fingerprint(facts))
        found = splits[name]
        return type(found)({key: column[:rows] for key, column in found.items()}, found.facts)

    def _agree(self, **sums: str) -> None:
        """Raise CellFailedError if the loaded model was trained on other data than the data read."""
        self.sums |= sums
        if len(set(self.sums.values())) > 1:
            self.sums = sums
            raise CellFailedError("the data set differs from the model's training data; train again")

    def _run(self, words: list[str], on_idle: Callable[[], None] | None = None) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", self.science.package, *words],
            cwd=self.root,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            creationflags=OWN_GROUP,
        ) as process:
            for line in lines(process):
                if line:
                    print(line, end="", flush=True)
                elif on_idle:
                    on_idle()
        if process.returncode:
            raise CellFailedError(f"{words[0]} failed with exit code {process.returncode}; see the output above")


def lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    """Yield the output of a process line by line, and "" after each second without output.

    An interrupt of the notebook is forwarded to the process.
    """
    heard: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in process.stdout or ():
            heard.put(line)
        heard.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            line = heard.get(timeout=REDRAW_SECONDS)
        except queue.Empty:
            line = ""
        except KeyboardInterrupt:
            process.send_signal(INTERRUPT)
            continue
        if line is None:
            return
        yield line


class Curves:
    """Learning curves of a run, updated in place in the notebook."""

    def __init__(self, record: Path) -> None:
        self.record, self.seen = record, 0
        self.shown: Any = None

    def draw(self) -> None:
        """Update the curves; do nothing before the first record, or outside of a notebook."""
        size = self.record.stat().st_size if self.record.exists() else 0
        if size == self.seen or find_spec("IPython") is None:
            return
        ipython = import_module("IPython.display")
        from free_ml_stack.evaluation.plots import learning_curves

        self.seen = size
        picture = ipython.Image(str(learning_curves(self.record, self.record.with_name("curves.png"))))
        if self.shown is None:
            self.shown = ipython.display(picture, display_id=True)
        else:
            self.shown.update(picture)
