"""The whole way in one command: doctor, data, train, sweep, publish, deploy, predict, monitor, and a report."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import StackError, cli
from .calling import RECORD, address, call
from .console import say, table
from .deploy import versions
from .hub import FOLDER
from .monitor import Monitoring, monitor, read_calls
from .report import report
from .storage import MANIFEST, open_store
from .sweep import sweep_folder
from .training import RESULT, find_run

if TYPE_CHECKING:
    from .science import Science
    from .settings import Settings

START = 60  # seconds that a gateway gets to start, and to write its log
SUMMARY, SWEEP = "demo.json", "sweep.yaml"


def demo(science: "Science", settings: "Settings") -> int:
    """Take the project through all steps, and end with a table and a page of what was made."""
    started = time.perf_counter()
    steps = cli.COMMANDS
    unpublished = ""
    for name in ("doctor", "data", "train", "sweep", "publish", "deploy"):
        say("", f"== {name} ==")
        try:
            code = steps[name](science, settings, arguments(name, science))
        except StackError as error:
            if name != "publish" or not (settings.models / find_run(settings).name / MANIFEST).exists():
                raise
            unpublished = str(error)  # the model is made all the same, and what comes next needs no Hub
            say(f"error: {error}")
            continue
        if code:
            raise StackError(f"{name} failed; the lines above say why")
        if name == "train":
            say(f"First trained model after {time.perf_counter() - started:.1f} s.")
    say("", "== predict ==")
    with gateway(science, settings):
        url, _ = address(settings)
        before = logged(settings)
        answers = call(settings, test_images(settings))
        if settings.algorithmia_api:
            wait_for_log(settings, before + len(answers))
        say(
            f"{len(answers)} calls through Algorithmia's client, the first answer: {json.dumps(answers[0])[:60]}…"
        )
    say("", "== monitor ==")
    seen = monitor(settings)
    found = facts(settings, url, answers[0], seen)
    found["unpublished"] = unpublished
    found["seconds"] = round(time.perf_counter() - started, 1)
    page = report(
        settings.title or settings.project, rows(found), images(settings, seen), settings.root / "report.html"
    )
    found["report"] = str(page)
    (settings.runs / SUMMARY).write_text(json.dumps(found, indent=1), encoding="utf-8")
    say("", table([(name, value) for name, value in rows(found)]))
    return 0


def arguments(command: str, science: "Science") -> Namespace:
    """The arguments that a command gets when it is called without any."""
    return cli.parse(science, [command])


@contextmanager
def gateway(science: "Science", settings: "Settings") -> Iterator[None]:
    """A gateway in a process of its own, as `serve` starts it, stopped in the end; none where one is configured."""
    if settings.algorithmia_api:
        yield
        return
    record = settings.private / RECORD
    process = subprocess.Popen(
        [sys.executable, "-m", science.package, "serve"], cwd=settings.root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if not any(line.startswith("Serving on") for line in process.stdout):
            raise StackError(f"the gateway did not start; `{settings.command} serve` says why")
        assert record.exists()
        yield
    finally:
        process.terminate()
        process.wait(START)


def logged(settings: "Settings") -> int:
    """How many calls are in the log."""
    return len(read_calls(open_store(settings.storage, settings), settings.algorithm.partition("/")[2]))


def wait_for_log(settings: "Settings", calls: int) -> None:
    """Wait for a gateway that runs elsewhere, which writes its log in pauses, to have written down `calls`."""
    end = time.monotonic() + START
    while logged(settings) < calls and time.monotonic() < end:
        time.sleep(0.2)


def test_images(settings: "Settings") -> list[Any]:
    """The images of the test split: what the model has never seen."""
    from . import dataset

    splits, _ = dataset.read(
        open_store(settings.storage, settings), settings.private / "cache", settings.command
    )
    images: list[Any] = splits["test"]["image"].tolist()
    return images


def facts(settings: "Settings", url: str, answer: Any, seen: Monitoring) -> dict[str, Any]:
    """What the demo has made, by name."""
    run = find_run(settings)
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    sweep = sweep_folder(settings, settings.root / SWEEP)
    model = settings.models / run.name
    return {
        "test_accuracy": result["test"]["accuracy"],
        "run": str(run),
        "best_config": json.loads((sweep / "best.json").read_text(encoding="utf-8")),
        "model": str(model),
        "card": str(model / "README.md"),
        "stored": f"{settings.storage}/{FOLDER}/{run.name}",
        "version": versions(open_store(settings.storage, settings), settings.algorithm.partition("/")[2])[
            0
        ].version,
        "gateway": url,
        "remote": bool(settings.algorithmia_api),
        "prediction": {key: answer[key] for key in ("label", "confidence") if key in answer},
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
        ("Test accuracy", f"{found['test_accuracy']:.4f}"),
        ("Best of the sweep", best),
        ("Model", found["model"]),
        ("Model card", found["card"]),
        ("In the store", found["stored"]),
        *([("Hub", found["unpublished"])] if found.get("unpublished") else []),
        ("Deployed", f"version {found['version']}"),
        ("Gateway", found["gateway"] + ("" if found["remote"] else " (stopped; `serve` starts it again)")),
        (
            "Prediction",
            f"{found['prediction'].get('label')} with confidence {found['prediction'].get('confidence', 0):.2f}",
        ),
        (
            "Latency",
            f"median {found['median_ms']:.1f} ms, 99 % within {found['p99_ms']:.1f} ms, {found['calls']} calls",
        ),
        ("Drift", found["drift"]),
        ("Time", f"{found.get('seconds', 0)} s"),
    ]
    return lines + ([("Report", found["report"])] if "report" in found else [])


def images(settings: "Settings", seen: Monitoring) -> dict[str, Path]:
    """The pictures of the report, by title."""
    model = settings.models / find_run(settings).name
    return {
        "Learning curves": model / "learning_curves.png",
        "Sweep": sweep_folder(settings, settings.root / SWEEP) / "sweep.png",
        "Confusion matrix": model / "confusion.png",
        "Latency": seen.pictures["latency"],
        "Drift": seen.pictures["drift"],
    }
