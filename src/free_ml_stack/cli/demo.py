"""The whole way in one command: doctor, data, train, sweep, publish, deploy, predict, monitor, and a report."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.algorithmia.calls import START, call_algorithm, gateway_address, start_gateway
from free_ml_stack.cli.commands.delivery import say_monitoring
from free_ml_stack.console import display_path, say, table
from free_ml_stack.deployment.deploy import versions
from free_ml_stack.deployment.monitor import Monitoring, monitor, read_calls
from free_ml_stack.errors import NoServiceError, StackError, is_external, one_line
from free_ml_stack.evaluation.page import report
from free_ml_stack.evaluation.result import headline, tables_with_pictures
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

Command = Callable[[str, "Settings"], int]  # runs a command without arguments
SUMMARY, SWEEP = "demo.json", "sweep.yaml"
LACKING = (("Store", "unstored"), ("Hub", "unpublished"))  # rows of what a service did not take
CALLS = 500  # of the deployed model at most
HERE = ("doctor", "train", "sweep")  # the steps whose results are on this machine, whatever the store


def demo(science: "Science", settings: "Settings", command: Command) -> int:
    """Take the project through all steps, and end with a table and a page of what was made.

    Where the store or the gateway elsewhere fails on the way, the project's own stand in for it.
    """
    run, unstored = DemoRun(science, settings, command), ""
    try:
        run.run()
    except Exception as error:
        if not run.can_fall_back(error):
            raise
        unstored = one_line(error)
        say(
            f"error: {unstored}",
            f"This project's own folder, {display_path(settings.private)}, stands in from here on.",
        )
        run.settings = settings = with_local_services(settings)
        run.run()
    found = facts(settings, run.url, run.answers[0], run.seen)
    found["unpublished"], found["unstored"] = run.unpublished, unstored
    found["seconds"] = round(time.perf_counter() - run.started, 1)
    page = report(
        settings.title or settings.project,
        rows(found),
        pictures(settings, run.seen),
        settings.root / "report.html",
        tables(settings),
    )
    found["report"] = str(page)
    (settings.runs / SUMMARY).write_bytes(as_json(found))
    say("", table([(name, value) for name, value in rows(found)]))
    if unstored:
        steps = ", ".join(f"`{settings.command} {step}`" for step in ("data", "publish", "deploy"))
        say(f"What is missing elsewhere goes there later, by {steps}.")
    return 0


class DemoRun:
    """The steps of a demo; run again after a fallback, it keeps what is on this machine, not what is in a store."""

    def __init__(self, science: "Science", settings: "Settings", command: Command) -> None:
        self.science, self.settings, self.command = science, settings, command
        self.started, self.done = time.perf_counter(), set[str]()
        self.unpublished, self.url = "", ""
        self.answers: list[Any] = []
        self.seen: Monitoring

    def run(self) -> None:
        """Take all steps that are still to be taken."""
        self.unpublished = ""
        for name in ("doctor", "data", "train", "sweep", "publish", "deploy"):
            if name not in self.done:
                say("", f"== {name} ==")
                self.step(name)
            if name in HERE:
                self.done.add(name)
        say("", "== predict ==")
        self.predict()
        say("", "== monitor ==")
        self.seen = monitor(self.settings)
        say_monitoring(self.seen)

    def step(self, name: str) -> None:
        """Run one command. Raises StackError where it fails; publishing may, for what comes next needs no Hub.

        What `doctor` finds wrong elsewhere ends nothing: each step says itself what it does without.
        """
        try:
            code = self.command(name, self.settings)
        except UnpublishedError as error:
            self.unpublished = str(error)
            say(f"error: {error}")
            return
        if code and name == "doctor":
            say("What can be done without that is done; the rest can follow once it is mended.")
        elif code:
            raise StackError(f"{name} failed; the lines above say why")
        if name == "train":
            say(f"First trained model after {time.perf_counter() - self.started:.1f} s.")

    def predict(self) -> None:
        """Call the deployed model with rows of the test split, and wait until the calls are in the log."""
        settings = self.settings
        with start_gateway(self.science, settings):
            self.url, _ = gateway_address(settings)
            before = logged(settings)
            self.answers = call_algorithm(settings, test_inputs(self.science, settings))
            if settings.algorithmia_api:
                wait_for_log(settings, before + len(self.answers))
        say(f"{len(self.answers)} calls through Algorithmia's client, the first answer: {shortened(self.answers[0])}")

    def can_fall_back(self, error: Exception) -> bool:
        """Whether an error is that of a service that this project's own folder can stand in for."""
        elsewhere = self.settings != with_local_services(self.settings)
        return elsewhere and (isinstance(error, NoServiceError) or is_external(error))


def logged(settings: "Settings") -> int:
    """How many calls are in the log."""
    return len(read_calls(open_store(settings.storage, settings), settings.algorithm.partition("/")[2]))


def wait_for_log(settings: "Settings", calls: int) -> None:
    """Wait for a gateway that runs elsewhere, which writes its log in pauses, to have written down `calls`."""
    end = time.monotonic() + START
    while logged(settings) < calls and time.monotonic() < end:
        time.sleep(0.2)


def test_inputs(science: "Science", settings: "Settings") -> list[Any]:
    """What callers would send for rows of the test split, all over it: what the model has never seen."""
    import numpy as np

    from free_ml_stack.data import dataset

    splits, _ = dataset.read(open_store(settings.storage, settings), settings.private / "cache", settings.command)
    rows = np.linspace(0, splits["test"].rows - 1, min(splits["test"].rows, CALLS)).astype(int)
    return dataset.examples(science, splits["test"], rows.tolist())


def facts(settings: "Settings", url: str, answer: Any, seen: Monitoring) -> dict[str, Any]:
    """What the demo has made, by name."""
    run = find_run(settings)
    store, name = open_store(settings.storage, settings), settings.algorithm.partition("/")[2]
    live = next(build for build in versions(store, name) if build.version == seen.version)
    model = settings.models / run.name
    if store.cat_file(f"{live.folder}/{MANIFEST}") != (model / MANIFEST).read_bytes():
        raise StackError(f"version {live.version} is not the model {run.name}: run `{settings.command} deploy`")
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    sweep = sweep_folder(settings, settings.root / SWEEP)
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


def rows(found: dict[str, Any]) -> list[tuple[str, object]]:
    """The facts as a table for people."""
    best = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found["best_config"].items()
    )
    lines: list[tuple[str, object]] = [
        headline("Test", found["test"]),
        ("Best of the sweep", best),
        ("Model", display_path(Path(found["model"]))),
        ("Model card", display_path(Path(found["card"]))),
        ("In the store", found["stored"]),
        *[(title, found[name]) for title, name in LACKING if found.get(name)],
        ("Deployed", f"version {found['version']}"),
        ("Gateway", found["gateway"] + ("" if found["remote"] else " (stopped; `serve` starts it again)")),
        ("Prediction", shortened(found["prediction"])),
        (
            "Latency",
            f"median {found['median_ms']:.1f} ms, 99 % within {found['p99_ms']:.1f} ms, {found['calls']} calls",
        ),
        ("Drift", found["drift"]),
        ("Time", f"{found.get('seconds', 0)} s"),
    ]
    return lines + ([("Report", display_path(Path(found["report"])))] if "report" in found else [])


def shortened(answer: Any, most: int = 48) -> str:
    """An answer as JSON, cut to fit a line."""
    text = json.dumps(answer)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def pictures(settings: "Settings", seen: Monitoring) -> dict[str, Path]:
    """The pictures of the report, by title."""
    run = find_run(settings)
    model, judged = settings.models / run.name, json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    return {
        **{title: model / name for title, name in judged["pictures"].items()},
        "Sweep": sweep_folder(settings, settings.root / SWEEP) / "sweep.png",
        "Latency": seen.pictures["latency"],
        "Drift": seen.pictures["drift"],
    }


def tables(settings: "Settings") -> dict[str, list[Sequence[object]]]:
    """The tables of the report: those that belong to a picture, by its title, their columns first."""
    judged = json.loads((find_run(settings) / EVALUATION).read_text(encoding="utf-8"))
    found = tables_with_pictures(judged["pictures"], judged["tables"])
    return {title: [table["columns"], *table["rows"]] for title, table in found.items()}
