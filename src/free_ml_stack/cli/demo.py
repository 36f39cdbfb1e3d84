"""The complete workflow in one command: doctor, data, train, sweep, publish, deploy, predict, monitor, report."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.algorithmia.calls import START, call_algorithm, gateway_address, start_gateway
from free_ml_stack.cli.commands.delivery import print_monitoring
from free_ml_stack.console import display_path, say, table
from free_ml_stack.deployment.deploy import versions
from free_ml_stack.deployment.monitor import Monitoring, monitor, read_calls
from free_ml_stack.errors import NoServiceError, StackError, is_external
from free_ml_stack.evaluation.page import report
from free_ml_stack.evaluation.result import headline, tables_with_pictures
from free_ml_stack.hub.client import error_line
from free_ml_stack.hub.publish import FOLDER, UnpublishedError
from free_ml_stack.storage.documents import as_json
from free_ml_stack.storage.manifest import MANIFEST
from free_ml_stack.storage.stores import open_store, with_local_services
from free_ml_stack.sweeps.sweep import sweep_folder
from free_ml_stack.training.outcome import EVALUATION, RESULT
from free_ml_stack.training.run import find_run

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

Command = Callable[[str, "Settings"], int]  # runs a command by name, without arguments
SUMMARY, SWEEP = "demo.json", "sweep.yaml"
FAILED = (("Store", "unstored"), ("Hub", "unpublished"))  # rows of the table for failures of services
CALLS = 500  # maximum number of calls of the deployed model
LOCAL = ("doctor", "train", "sweep")  # steps whose results do not depend on the store


def demo(science: "Science", settings: "Settings", command: Command, started: float) -> int:
    """Run all steps, then print a table and write a report of the results.

    `started` is the value of `time.perf_counter()` before the imports of the command. If a remote store or gateway
    fails, the demo falls back to the project's local ones.
    """
    run, unstored = DemoRun(science, settings, command, started), ""
    try:
        run.run()
    except Exception as error:
        if not run.can_fall_back(error):
            raise
        unstored = error_line(error)
        say(
            f"error: {unstored}",
            f"Falling back to local storage in {display_path(settings.private)}.",
        )
        run.settings = settings = with_local_services(settings)
        run.run()
    found = facts(science, settings, run.url, run.answers[0], run.seen)
    found["unpublished"], found["unstored"] = run.unpublished, unstored
    found["seconds"] = round(time.perf_counter() - run.started, 1)
    page = report(
        settings.title or settings.project,
        rows(found, settings.root),
        pictures(science, settings, run.seen),
        settings.root / "report.html",
        tables(settings),
    )
    found["report"] = str(page)
    (settings.runs / SUMMARY).write_bytes(as_json(found))
    say("", table([(name, value) for name, value in rows(found)]))
    if unstored:
        steps = ", ".join(f"`{settings.command} {step}`" for step in ("data", "publish", "deploy"))
        say(f"Run {steps} later to upload the results.")
    return 0


class DemoRun:
    """The steps of a demo. After a fallback, steps whose results are in the store are repeated."""

    def __init__(self, science: "Science", settings: "Settings", command: Command, started: float) -> None:
        self.science, self.settings, self.command, self.started = science, settings, command, started
        self.done = set[str]()
        self.unpublished, self.url = "", ""
        self.answers: list[Any] = []
        self.seen: Monitoring

    def run(self) -> None:
        """Run the remaining steps."""
        self.unpublished = ""
        for name in ("doctor", "data", "train", "sweep", "publish", "deploy"):
            if name not in self.done:
                say("", f"== {name} ==")
                self.step(name)
            if name in LOCAL:
                self.done.add(name)
        say("", "== predict ==")
        self.predict()
        say("", "== monitor ==")
        self.seen = monitor(self.settings)
        print_monitoring(self.seen)

    def step(self, name: str) -> None:
        """Run one command. Raises StackError if it fails, except for `doctor` and for uploads to the Hub.

        Later steps do not need the Hub, and report problems with other services themselves.
        """
        try:
            code = self.command(name, self.settings)
        except UnpublishedError as error:
            self.unpublished = str(error)
            say(f"error: {error}")
            return
        if code and name == "doctor":
            say("Continuing without the services above; run `doctor` again after fixing the problems.")
        elif code:
            raise StackError(f"{name} failed; see the messages above")
        if name == "train":
            say(f"Trained the first model after {time.perf_counter() - self.started:.1f} s.")

    def predict(self) -> None:
        """Call the deployed model with rows of the test split, and wait until the calls are logged."""
        settings = self.settings
        with start_gateway(self.science, settings):
            self.url, _ = gateway_address(settings)
            before = logged(settings)
            self.answers = call_algorithm(settings, test_inputs(self.science, settings))
            if settings.algorithmia_api:
                wait_for_log(settings, before + len(self.answers))
        say(f"{len(self.answers)} calls with Algorithmia's client; first result: {shortened(self.answers[0])}")

    def can_fall_back(self, error: Exception) -> bool:
        """Return whether an error comes from a service that local storage can replace."""
        elsewhere = self.settings != with_local_services(self.settings)
        return elsewhere and (isinstance(error, NoServiceError) or is_external(error))


def logged(settings: "Settings") -> int:
    """Return the number of logged calls."""
    return len(read_calls(open_store(settings.storage, settings), settings.algorithm.partition("/")[2]))


def wait_for_log(settings: "Settings", calls: int) -> None:
    """Wait until a remote gateway, which writes its log periodically, has logged `calls`."""
    end = time.monotonic() + START
    while logged(settings) < calls and time.monotonic() < end:
        time.sleep(0.2)


def test_inputs(science: "Science", settings: "Settings") -> list[Any]:
    """Return inputs for evenly spaced rows of the test split."""
    import numpy as np

    from free_ml_stack.data import dataset

    splits, _ = dataset.load(science, settings, open_store(settings.storage, settings))
    rows = np.linspace(0, splits["test"].rows - 1, min(splits["test"].rows, CALLS)).astype(int)
    return dataset.examples(science, splits["test"], rows.tolist())


def facts(science: "Science", settings: "Settings", url: str, answer: Any, seen: Monitoring) -> dict[str, Any]:
    """Collect the results of the demo by name."""
    run = find_run(settings)
    store, name = open_store(settings.storage, settings), settings.algorithm.partition("/")[2]
    live = next(build for build in versions(store, name) if build.version == seen.version)
    model = settings.models / run.name
    if store.cat_file(f"{live.folder}/{MANIFEST}") != (model / MANIFEST).read_bytes():
        raise StackError(f"version {live.version} is not model {run.name}; run `{settings.command} deploy`")
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    sweep = sweep_folder(science, settings, settings.root / SWEEP)
    return {
        "test": result["test"],
        "run": str(run),
        "best_config": json.loads((sweep / "best.json").read_text(encoding="utf-8")),
        "model": str(model),
        "card": str(model / "README.md"),
        "stored": f"{settings.storage}/{FOLDER}/{run.name}",
        "version": live.version,
        "gateway": url,
        "remote": bool(settings.algorithmia_api),
        "prediction": answer,
        "calls": seen.calls,
        "median_ms": seen.median_ms,
        "p99_ms": seen.p99_ms,
        "drift": seen.drift["verdict"],
    }


def rows(found: dict[str, Any], base: Path | None = None) -> list[tuple[str, object]]:
    """Format the results as rows of a table, with paths relative to the folder `base` or the working directory."""
    best = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found["best_config"].items()
    )
    lines: list[tuple[str, object]] = [
        headline("Test", found["test"]),
        ("Best trial", best),
        ("Model", display_path(Path(found["model"]), base)),
        ("Model card", display_path(Path(found["card"]), base)),
        ("Stored in", found["stored"]),
        *[(title, found[name]) for title, name in FAILED if found.get(name)],
        ("Deployed", f"version {found['version']}"),
        ("Gateway", found["gateway"] + ("" if found["remote"] else " (stopped; run `serve` to start it)")),
        ("Prediction", shortened(found["prediction"])),
        (
            "Latency",
            f"median {found['median_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms, {found['calls']} calls",
        ),
        ("Drift", found["drift"]),
        ("Time", f"{found.get('seconds', 0)} s"),
    ]
    return lines + ([("Report", display_path(Path(found["report"])))] if "report" in found else [])


def shortened(answer: Any, most: int = 48) -> str:
    """Format a result as JSON, truncated to fit a line."""
    text = json.dumps(answer, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def pictures(science: "Science", settings: "Settings", seen: Monitoring) -> dict[str, Path]:
    """Return the pictures of the report by title."""
    run = find_run(settings)
    model, judged = settings.models / run.name, json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    return {
        **{title: model / name for title, name in judged["pictures"].items()},
        "Sweep": sweep_folder(science, settings, settings.root / SWEEP) / "sweep.png",
        "Latency": seen.pictures["latency"],
        "Drift": seen.pictures["drift"],
    }


def tables(settings: "Settings") -> dict[str, list[Sequence[object]]]:
    """Return the tables below pictures of the report, by title; the first row holds the column names."""
    judged = json.loads((find_run(settings) / EVALUATION).read_text(encoding="utf-8"))
    found = tables_with_pictures(judged["pictures"], judged["tables"])
    return {title: [table["columns"], *table["rows"]] for title, table in found.items()}
