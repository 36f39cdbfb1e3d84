"""Weights & Biases through its own client: never a prompt, never a reason for a run to stop or to wait for long.

Row n of metrics.jsonl is W&B's step n, so what W&B has of a run is told by one number; `step` is the charts' axis.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack import git
from free_ml_stack.console import display_path, say
from free_ml_stack.errors import first_line
from free_ml_stack.tracking.tracker import PREEMPTED, RunStoppedError, Tracker, Values

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

# Seconds: to open a run, to send its rest, for the service process to end, and until the client, which asks for orders
# every 15, has an answer on a machine that does other things, too.
INIT, FINISH, LAST, ORDERS = 20, 60, 10, 22
LONGEST = 45  # seconds of it at most: an agent of W&B kills a trial 60 seconds after it told it to end
SETTLE = 2.0  # seconds until W&B shows what it has been sent
BURST = 5.0  # seconds of rows that are sent at once: one alone wakes thread and process, and takes nine times as long
PICTURES = (".png",)
STOPPED = """query RunStoppedStatus($entity: String, $project: String, $run: String!) {
    project(name: $project, entityName: $entity) { run(name: $run) { stopped } }
}"""


def open_tracker(settings: "Settings", opened: Values, folder: Path, online: bool) -> Tracker:
    """The tracker of a run as it was `opened`; offline where online fails, and none where that does. Either is said."""
    told = ""
    for mode in ("online", "offline") if online else ("offline",):
        try:
            return WandbTracker(settings, opened, folder, mode)
        except Exception as error:  # whatever it is, the run goes on without
            how, failure = "Tracked offline" if mode == "online" else "Kept on disk", first_line(error)
            if failure != told:
                say(f"W&B: {failure}. {how}; `{settings.command} sync` sends it later.")
            told = failure
            end_service()
    return Tracker()


class WandbTracker(Tracker):
    """One run at W&B, online or in a folder on disk. After a first failure it keeps quiet: all is on disk anyway."""

    def __init__(self, settings: "Settings", opened: Values, folder: Path, mode: str) -> None:
        import wandb

        self.folder, self.online, self.command = folder, mode == "online", settings.command
        self.failure, self.sweep, self.stopped = "", settings.wandb_sweep, threading.Event()
        # With the environment's settings and the user's files, which win; and with the mode, or it would call home.
        own = wandb.setup(wandb.Settings(silent=True, mode="online" if self.online else "offline")).settings
        options: dict[str, Any] = {"silent": True, "console": "off", "finish_timeout_raises": True}
        options["symlink"] = False  # it would be to where the project is now
        options |= {
            "init_timeout": min(own.init_timeout, INIT),
            "finish_timeout": own.finish_timeout or FINISH,
        }
        if not git.REPOSITORY.isdisjoint(os.environ):  # its client would tell of the repository that they name
            options["disable_git"] = True
        self.patience, self.orders = options["init_timeout"], min(ORDERS * settings.patience, LONGEST)
        # The service process means to keep to the first, and does not always.
        self.last_patience = options["finish_timeout"] + LAST
        # What fails with the client's own telemetry is no news to who trains, nor, on a full disk, with its log.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        logging.raiseExceptions = False
        named: dict[str, Any] = {"id": opened["id"]}
        named["project"] = opened.get("project") or settings.wandb_project or settings.project
        named["entity"] = opened.get("entity") or settings.wandb_entity or None
        # Instead of an interrupt, after which the run would be saved to go on later.
        # A function, which the client can copy, as it does with its settings where a run does not finish in time.
        options["stop_fn"] = lambda: self.stopped.set()
        if opened.get("sweep"):
            options["sweep_id"] = opened["sweep"]
        self.run = wandb.init(
            **({} if settings.wandb_sweep else named),  # an agent has named them
            job_type=opened["kind"],
            dir=folder,
            config=opened["config"],
            resume="allow" if self.online else None,
            mode="online" if self.online else "offline",
            settings=wandb.Settings(**options),
        )
        self.known = self.run.starting_step if self.online else 0  # rows that W&B has already
        self.rows = self.known
        self.step = 0.0
        self.waiting: list[tuple[int, dict[str, float]]] = []
        self.sent = float("-inf")
        self.url = (self.run.url or "") if self.online else ""
        self.pictures: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, row: int, values: Mapping[str, float]) -> None:
        """Send a row, unless W&B has it, together with others that come soon."""
        self.rows, self.step = max(self.rows, row + 1), values.get("step", self.step)
        if row >= self.known:
            self.waiting.append((row, {**values, "_timestamp": time.time()}))
            if time.monotonic() - self.sent >= BURST:
                self._send()
        if self.stopped.is_set():
            raise RunStoppedError("W&B has stopped this run")

    def _send(self) -> None:
        for row, values in self.waiting:
            self._do(self.run.log, values, step=row)
        self.waiting, self.sent = [], time.monotonic()

    def summary(self, values: Values) -> None:
        """Set final numbers."""
        self._send()  # or the last row's would stand in their place
        self._do(self.run.summary.update, dict(values))

    def picture(self, name: str, path: str) -> None:
        """Show a picture, with the last row."""
        self._do(self._picture, name, path)

    def _picture(self, name: str, path: str) -> None:
        import wandb

        self.pictures[name] = wandb.Image(str(self.folder / path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table, with the last row; a cell that names a picture shows it."""
        self._do(self._table, name, columns, rows)

    def _table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        table = wandb.Table(columns=list(columns))
        for row in rows:
            cells = (
                wandb.Image(str(self.folder / cell)) if isinstance(cell, str) and cell.endswith(PICTURES) else cell
                for cell in row
            )
            table.add_data(*cells)
        self.pictures[name] = table

    def uses(self, name: str, alias: str) -> None:
        """Note an artifact as this run's input; offline there is nothing to look it up in, so `sync` does it."""
        if self.online:
            self._do_in_time(self.run.use_artifact, f"{name}:{alias}")

    def made(self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool) -> None:
        """Send an artifact as this run's output (or as its input); offline that is left to `sync`."""
        if self.online:
            self._do_in_time(self._made, name, kind, files, alias, facts, used)

    def _made(self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool) -> None:
        import wandb

        artifact = wandb.Artifact(name, kind, metadata=dict(facts))
        for file in files:
            inside = not Path(file).is_absolute() and ".." not in Path(file).parts
            artifact.add_file(str(self.folder / file), name=Path(file).as_posix() if inside else None)
        if used:
            self.run.use_artifact(artifact, aliases=[alias])
        else:
            self.artifacts.append(self.run.log_artifact(artifact, aliases=[alias]))

    def file(self, path: str) -> None:
        """Send a file."""
        self._do(self.run.save, str(self.folder / path), base_path=str(self.folder), policy="now")

    def over(self) -> bool:
        """Whether a trial that the system stops is one that the sweep has ended: its agent hands that on as a SIGTERM.

        W&B is told first that it may go on elsewhere, in case the system does not wait.
        """
        if not (self.sweep and self.online):
            return False
        self._do(self.run.mark_preempting)
        try:
            return self.stopped.is_set() or self._told_to_stop()
        except (ImportError, AttributeError):  # of its client's insides, in another version
            return self.stopped.wait(self.orders)
        except Exception as error:  # whatever it is, the run can go on later
            self.failure = self.failure or first_line(error)
            return False

    def _told_to_stop(self) -> bool:
        """Ask W&B now whether it has stopped this run; the client itself asks every 15 seconds only."""
        import wandb

        run = {"entity": self.run.entity, "project": self.run.project, "run": self.run.id}
        found: Any = wandb.Api(timeout=LAST)._service_api.execute_graphql(STOPPED, variables=run)
        return bool(found["project"]["run"]["stopped"])

    @property
    def complete(self) -> bool:
        """Whether W&B has all of the run."""
        return self.online and not self.failure

    def finish(self, exit_code: int) -> str:
        """End the run and the client's service process; returns its address, or how to send it later."""
        self._send()
        if self.pictures and self.known <= self.rows:
            self._do_in_time(self._show, self.rows)
            self.rows += 1
        if exit_code == PREEMPTED and self.online:
            self._do(self.run.mark_preempting)
        self._do_in_time(self._finish, exit_code, seconds=self.last_patience)
        if self.online:
            self._do_in_time(self._arrived)
        self._end_polling()
        end_service()
        if self.online and not self.failure:
            return f"W&B: {self.url}"
        why = f"{self.failure}; all of it is kept here" if self.online else "offline"
        folder = display_path(self.folder / "wandb")
        return f"W&B: {why}. `{self.command} sync` sends it; `wandb leet {folder}` shows it here."

    def _end_polling(self) -> None:
        """End the client's threads of a run that was not finished: without the service they print a traceback."""
        checker = getattr(self.run, "_run_status_checker", None)
        if checker:
            work = threading.Thread(target=checker.join, daemon=True)
            work.start()
            work.join(LAST)

    def _show(self, row: int) -> None:
        """Send the pictures and tables as a row; of a table the client asks the server something first."""
        self.run.log({**self.pictures, "step": self.step}, step=row)

    def _finish(self, exit_code: int) -> None:
        """End the run. Raises ValueError for an artifact that W&B has refused, of which ending says nothing."""
        try:
            for artifact in self.artifacts:
                artifact.wait()
        finally:
            self.run.finish(exit_code=exit_code)

    def _arrived(self) -> None:
        """Raise ValueError if W&B does not have all rows, and the run's end, after a few seconds at most."""
        deadline = time.monotonic() + SETTLE
        while True:
            rows, ended = found_at(f"{self.run.entity}/{self.run.project}/{self.run.id}")
            if rows >= self.rows and ended:
                return
            if time.monotonic() > deadline:
                raise ValueError(f"{rows} of {self.rows} rows have arrived{'' if ended else ', the end has not'}")
            time.sleep(0.2)

    def _do_in_time(self, call: Any, *arguments: Any, seconds: float = 0.0) -> None:
        """Do what waits for an answer, but not for long: the client would wait as long as it takes."""
        patience = seconds or self.patience
        work = threading.Thread(target=self._do, args=(call, *arguments), daemon=True)
        work.start()
        work.join(patience)
        if work.is_alive():
            self.failure = self.failure or f"no answer within {patience:.0f} s"

    def _do(self, call: Any, *arguments: Any, **named: Any) -> None:
        """Do it, unless something has failed before."""
        if self.failure:
            return
        try:
            call(*arguments, **named)
        except Exception as error:  # whatever it is, the run goes on without
            self.failure = first_line(error)


def found_at(path: str) -> tuple[int, bool]:
    """How many rows of `entity/project/run` W&B has, 0 where there is no such run, and whether it has ended there."""
    import wandb
    from wandb.errors import CommError

    try:
        run = wandb.Api(timeout=LAST).run(path)
        return int(run.lastHistoryStep) + 1, run.state not in ("running", "pending")
    except (ValueError, CommError) as error:
        if "not find" in str(error) or "not found" in str(error):
            return 0, False
        raise


def end_service() -> None:
    """End the client's service process; after a few seconds by force, for it would repeat in vain for minutes."""
    import wandb
    from wandb.sdk import wandb_setup

    # not by `singleton()`, which would read the settings, and fail again where it is they that are wrong
    service = getattr(wandb_setup._singleton, "_connection", None)
    process = getattr(getattr(service, "_proc", None), "_process", None)
    late = threading.Timer(LAST, process.kill) if process else None
    if late:
        late.start()
    try:
        wandb.teardown()
    except SystemExit:  # how it tells that the process did not end well
        pass
    finally:
        if late:
            late.cancel()
