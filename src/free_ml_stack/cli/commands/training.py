"""Commands that create a model: data, train, sweep."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.cli.command import integer_from, parse_seconds, print_next
from free_ml_stack.console import display_path, say, table
from free_ml_stack.errors import PreemptedError, StackError
from free_ml_stack.project.arguments import chosen_run

if TYPE_CHECKING:
    from free_ml_stack.data.source import Source
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings


def data(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Load the data set, split it, and write it to the store; `--publish` alone publishes the one that is there."""
    from free_ml_stack.data import dataset
    from free_ml_stack.data.ingest import ingest
    from free_ml_stack.storage.stores import open_store, place

    store = open_store(settings.storage, settings)
    if args.publish:
        from free_ml_stack.data import hub_dataset

        hub_dataset.repository_of(args.publish)
    written = dataset.stored(store) if args.publish and not (args.source or args.target or args.seed) else {}
    if not written:
        source = _source(science, args.source)
        written = ingest(store, source, science.data, args.target, args.seed, settings.private / "cache")
        say(table(list(written["rows"].items()), ("split", "rows")))
        say(f"Data set {written['name']} written to {place(settings.storage, dataset.FOLDER, settings)}.")
    if args.publish:
        url, version = hub_dataset.publish(args.publish, store, science.model.TASK, written["name"], args.public)
        say(f"Published at {url} as {version}.")
    return print_next(settings, "train")


def _source(science: "Science", place: str) -> "Source":
    """Return the source of `--from`, or else the embedded data set."""
    from free_ml_stack.data import source

    if place.startswith("hf:"):
        from free_ml_stack.data.hub_dataset import from_hub

        return from_hub(place)
    if place:
        return source.from_path(place)
    data = science.data
    facts = {"name": data.NAME, "source": data.SOURCE, "license": {"license": data.LICENSE}}
    return source.Source(lambda: {"train": source.from_columns(data.fetch())}, facts)


def add_data_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `data`."""
    add = parser.add_argument
    add("--seed", type=integer_from(0), default=0, help="seed of the split (default: 0)")
    add(
        "--from",
        dest="source",
        default="",
        metavar="SOURCE",
        help="own data: a folder with one subfolder per class; a CSV, JSON Lines or Parquet file, or a folder of "
        "them; hf://datasets/USER/NAME (default: the embedded data set)",
    )
    add("--target", default="", metavar="COLUMN", help="column to predict (default: TARGET of data.py)")
    add(
        "--publish",
        default="",
        metavar="URL",
        help="publish the data set of the store to hf://datasets/USER/NAME; with SOURCE, replace it first",
    )
    add("--public", action="store_true", help="make the repository on the Hub public")


def train(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Train a model; every field of TrainConfig is a flag."""
    from free_ml_stack.tracking.tracker import RunStoppedError
    from free_ml_stack.training import run as training

    run = chosen_run(args, settings.wandb_run)  # which W&B's agent sets
    try:
        result = training.train(science, training.config_from_args(science, settings, args), settings, run)
    except PreemptedError as stop:
        if settings.rank == 0:
            say(str(stop))
        return training.RESUME
    except RunStoppedError as stop:
        say(f"{stop}.")
        return 0
    except (StackError, OSError):
        if settings.wandb_run and settings.rank == 0:
            training.report_early_failure(settings, run)
        raise
    if settings.rank == 0:
        from free_ml_stack.evaluation.result import headline

        score = " ".join(headline("Test", result["test"]))
        say(f"{score}; {result['steps']} steps in {result['seconds']:.1f} s.")
        say(
            f"Run {result['run']} is in {display_path(settings.runs / result['run'])}.",
            *filter(None, [result["tracked"]]),
        )
        if not settings.wandb_sweep:  # trials have no next step
            print_next(settings, "sweep", "publish")
    return 0


def sweep(science: "Science", settings: "Settings", args: Namespace) -> int:
    """Search for the best configuration with sweep.yaml: at W&B with a valid key, otherwise locally."""
    from free_ml_stack.evaluation.result import metric_text
    from free_ml_stack.sweeps import sweep as sweeps
    from free_ml_stack.sweeps.command import runs_train

    options = sweeps.SweepOptions(args.agents, args.trials, args.join, args.study, args.sampler, args.timeout)
    try:
        found = sweeps.sweep(science, settings, args.file or settings.root / "sweep.yaml", options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command to continue the sweep") from None
    rows, count = found.rows(), len(found.trials)
    say(
        table(rows, found.header()),
        *([f"The table shows the best {len(rows)} of {count} trials."] if count > len(rows) else []),
        f"Trials and pictures are in {display_path(found.folder)}.",
        *filter(None, [found.tracked]),
    )
    say(f"Best: {found.metric} {metric_text(found.best_value)}, written to {display_path(found.best_config)}.")
    if not runs_train(found.plan, science.package):  # the configuration of another program is not for `train`
        return 0
    return print_next(settings, f"train --config {display_path(found.best_config)}")


def add_sweep_arguments(parser: ArgumentParser, science: "Science") -> None:
    """Add the arguments of `sweep`."""
    add = parser.add_argument
    add("--file", type=Path, help="sweep file (default: sweep.yaml)")
    add("--agents", type=integer_from(1), default=2, metavar="N", help="number of parallel trials (default: 2)")
    add(
        "--trials",
        type=integer_from(1),
        default=0,
        metavar="N",
        help="maximum number of trials (default: run_cap of the file)",
    )
    add("--join", default="", metavar="ID", help="run agents for the existing sweep ENTITY/PROJECT/ID at W&B")
    shared = "share the trials of a local sweep between machines: a shared folder or a database URL"
    add("--study", default="", metavar="STORAGE", help=shared)
    add("--sampler", choices=("tpe", "gp"), default="tpe", help="sampler of a local bayes sweep (default: tpe)")
    add("--timeout", type=parse_seconds, default=0.0, metavar="S", help="time limit of a local trial in seconds")
