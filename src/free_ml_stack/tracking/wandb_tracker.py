"""Weights & Biases as tracker, through its own client: no prompts, and no failure or long wait stops a run.

Row n of metrics.jsonl is W&B's step n, so that one number is enough to resume an upload; `step` is the axis of charts.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack import git
from free_ml_stack.console import say
from free_ml_stack.errors import first_line
from free_ml_stack.tracking.tracker import PREEMPTED, RunStoppedError, Tracker, Values

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

# Timeouts in seconds: to open a run, to upload the rest of it, for the service process to exit, and for the client to
# notice a stop request, which it polls every 15 seconds.
INIT, FINISH, LAST, ORDERS = 20, 60, 10, 22
MAX_ORDERS = 45  # maximum of ORDERS in seconds; W&B's agent kills a trial 60 seconds after SIGTERM
SETTLE = 2.0  # seconds until uploaded rows are visible at W&B
BURST = 5.0  # seconds of rows that are sent together; sending each row alone takes nine times as long
STOPPED = """query RunStoppedStatus($entity: String, $project: String, $run: String!) {
    project(name: $project, entityName: $entity) { run(name: $run) { stopped } }
}"""


def open_tracker(settings: "Settings", opened: Values, folder: Path, online: bool) -> Tracker:
    """Open the tracker of a run; fall back to offline mode, then to no tracker, with a message."""
    reported = ""
    for mode in ("online", "offline") if online else ("offline",):
        try:
            return WandbTracker(settings, opened, folder, mode)
        except Exception as error:  # the client raises many types; the run continues
            how, failure = "Tracking offline" if mode == "online" else "Recording on disk only", first_line(error)
            if failure != reported:
                say(f"W&B: {failure}. {how}; run `{settings.command} sync` later to upload the run.")
            reported = failure
            end_service()
    return Tracker()


class WandbTracker(Tracker):
    """One run at W&B, online or offline. After the first failure it stops uploading; everything is on disk anyway."""

    def __init__(self, settings: "Settings", opened: Values, folder: Path, mode: str) -> None:
        import wandb

        self.folder, self.online, self.command = folder, mode == "online", settings.command
        self.kind = opened["kind"]
        self.failure, self.sweep, self.stopped = "", settings.wandb_sweep, threading.Event()
        # Settings from the environment and the user's files take precedence. Without the mode, the client would
        # connect.
        own = wandb.setup(wandb.Settings(silent=True, mode="online" if self.online else "offline")).settings
        options: dict[str, Any] = {"silent": True, "console": "off", "finish_timeout_raises": True}
        options["symlink"] = False  # an absolute link, which breaks when the project is moved
        options |= {
            "init_timeout": min(own.init_timeout, INIT),
            "finish_timeout": own.finish_timeout or FINISH,
        }
        if not git.REPOSITORY.isdisjoint(os.environ):  # the client would record the repository of the GIT_* variables
            options["disable_git"] = True
        self.patience, self.orders = options["init_timeout"], min(ORDERS * settings.patience, MAX_ORDERS)
        # The service process does not always observe finish_timeout.
        self.last_patience = options["finish_timeout"] + LAST
        # Hide errors of the client's telemetry, and of its log file on a full disk.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        logging.raiseExceptions = False
        named: dict[str, Any] = {"id": opened["id"]}
        named["project"] = opened.get("project") or settings.wandb_project or settings.project
        named["entity"] = opened.get("entity") or settings.wandb_entity or None
        # Replaces the client's interrupt, which would look like a preemption. A function, because the client copies its
        # settings if a run does not finish in time.
        options["stop_fn"] = lambda: self.stopped.set()
        if opened.get("sweep"):
            options["sweep_id"] = opened["sweep"]
        self.run = wandb.init(
            **({} if settings.wandb_sweep else named),  # set by the agent
            job_type=opened["kind"],
            dir=folder,
            config=opened["config"],
            resume="allow" if self.online else None,
            mode="online" if self.online else "offline",
            settings=wandb.Settings(**options),
        )
        self.known = self.run.starting_step if self.online else 0  # rows that W&B already has
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
        """Queue a row, unless W&B already has it; rows of BURST seconds are sent together."""
        self.rows, self.step = max(self.rows, row + 1), values.get("step", self.step)
        if row >= self.known:
            self.waiting.append((row, {**values, "_timestamp": time.time()}))
            if time.monotonic() - self.sent >= BURST:
                self._send()
        if self.stopped.is_set():
            raise RunStoppedError("the run was stopped at W&B")

    def _send(self) -> None:
        for row, values in self.waiting:
            self._call(self.run.log, values, step=row)
        self.waiting, self.sent = [], time.monotonic()

    def summary(self, values: Values) -> None:
        """Set summary values."""
        self._send()  # otherwise the last row would overwrite them
        self._call(self.run.summary.update, dict(values))

    def picture(self, name: str, path: str) -> None:
        """Add a picture, which is sent with the last row."""
        self._call(self._picture, name, path)

    def _picture(self, name: str, path: str) -> None:
        import wandb

        self.pictures[name] = wandb.Image(str(self.folder / path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table, which is sent with the last row; cells that are paths of PNG files of the project show them."""
        self._call(self._table, name, columns, rows)

    def _table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        def shown(cell: Any) -> Any:
            return wandb.Image(str(self.folder / cell)) if self._is_picture(cell) else cell

        cells = [[shown(cell) for cell in row] for row in rows]
        try:
            self.pictures[name] = wandb.Table(list(columns), cells)
        except TypeError:  # a column has values of several types
            self.pictures[name] = wandb.Table(list(columns), cells, allow_mixed_types=True)

    def _is_picture(self, cell: Any) -> bool:
        """Return whether a cell is the path of a picture of the project; a text of the data may look like one."""
        if not (isinstance(cell, str) and cell.endswith(".png")):
            return False
        path = self.folder / cell
        return path.is_relative_to(self.folder) and os.path.isfile(path)  # noqa: PTH113 - never fails

    def uses(self, name: str, alias: str) -> None:
        """Record an artifact as input of this run; offline, `sync` does this later."""
        if self.online:
            self._call_with_timeout(self.run.use_artifact, f"{name}:{alias}")

    def made(self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool) -> None:
        """Upload an artifact as output (or input) of this run; offline, `sync` does this later."""
        if self.online:
            self._call_with_timeout(self._log_artifact, name, kind, files, alias, facts, used)

    def _log_artifact(self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool) -> None:
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
        """Upload a file."""
        self._call(self.run.save, str(self.folder / path), base_path=str(self.folder), policy="now")

    def stopped_by_sweep(self) -> bool:
        """Return whether a terminated trial was stopped by the sweep, whose agent forwards the stop as SIGTERM.

        The run is first marked as preempting, in case the system kills this process early.
        """
        if not (self.sweep and self.online):
            return False
        self._call(self.run.mark_preempting)
        try:
            return self.stopped.is_set() or self._stop_requested()
        except (ImportError, AttributeError):  # private attributes, which may be missing in other versions
            return self.stopped.wait(self.orders)
        except Exception as error:  # the client raises many types; the run can be resumed
            self.failure = self.failure or first_line(error)
            return False

    def _stop_requested(self) -> bool:
        """Request from W&B whether this run was stopped; the client polls only every 15 seconds."""
        import wandb

        run = {"entity": self.run.entity, "project": self.run.project, "run": self.run.id}
        found: Any = wandb.Api(timeout=LAST)._service_api.execute_graphql(STOPPED, variables=run)
        return bool(found["project"]["run"]["stopped"])

    @property
    def complete(self) -> bool:
        """Return whether W&B has the complete run."""
        return self.online and not self.failure

    def finish(self, exit_code: int) -> str:
        """End the run and the client's service process; return its URL, or how to upload it later.

        Offline, only a training run returns it, since the other commands follow one.
        """
        self._send()
        if self.pictures and self.known <= self.rows:
            self._call_with_timeout(self._send_pictures, self.rows)
            self.rows += 1
        if exit_code == PREEMPTED and self.online:
            self._call(self.run.mark_preempting)
        self._call_with_timeout(self._finish, exit_code, seconds=self.last_patience)
        if self.online:
            self._call_with_timeout(self._check_uploaded)
        self._end_polling()
        end_service()
        if self.online and not self.failure:
            return f"W&B: {self.url}"
        if not self.online and self.kind != "train":
            return ""
        why = f"{self.failure}; the run is kept on disk" if self.online else "offline"
        return f"W&B: {why}. Run `{self.command} sync` to upload it."

    def _end_polling(self) -> None:
        """Stop the client's polling threads of an unfinished run; without the service they print a traceback."""
        checker = getattr(self.run, "_run_status_checker", None)
        if checker:
            work = threading.Thread(target=checker.join, daemon=True)
            work.start()
            work.join(LAST)

    def _send_pictures(self, row: int) -> None:
        """Send the pictures and tables as a row; for a table, the client waits for a server response."""
        self.run.log({**self.pictures, "step": self.step}, step=row)

    def _finish(self, exit_code: int) -> None:
        """End the run. Raises ValueError for an artifact that W&B rejected, which the client would ignore."""
        try:
            for artifact in self.artifacts:
                artifact.wait()
        finally:
            self.run.finish(exit_code=exit_code)

    def _check_uploaded(self) -> None:
        """Raise ValueError if W&B does not have all rows and the run's end after SETTLE seconds."""
        deadline = time.monotonic() + SETTLE
        while True:
            rows, ended = remote_state(f"{self.run.entity}/{self.run.project}/{self.run.id}")
            if rows >= self.rows and ended:
                return
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{rows} of {self.rows} rows uploaded{'' if ended else ', without the end of the run'}"
                )
            time.sleep(0.2)

    def _call_with_timeout(self, call: Any, *arguments: Any, seconds: float = 0.0) -> None:
        """Run a call that waits for the server, with a timeout; the client has none."""
        patience = seconds or self.patience
        work = threading.Thread(target=self._call, args=(call, *arguments), daemon=True)
        work.start()
        work.join(patience)
        if work.is_alive():
            self.failure = self.failure or f"no answer within {patience:.0f} s"

    def _call(self, call: Any, *arguments: Any, **named: Any) -> None:
        """Run a call, unless an earlier one failed."""
        if self.failure:
            return
        try:
            call(*arguments, **named)
        except Exception as error:  # the client raises many types; the run continues
            self.failure = first_line(error)


def remote_state(path: str) -> tuple[int, bool]:
    """Return the number of rows that W&B has of `entity/project/run`, 0 if unknown, and whether it has ended."""
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
    """End the client's service process; kill it after LAST seconds, because it may retry for minutes."""
    import wandb
    from wandb.sdk import wandb_setup

    # not `singleton()`, which reads the settings again and fails if they are invalid
    service = getattr(wandb_setup._singleton, "_connection", None)
    process = getattr(getattr(service, "_proc", None), "_process", None)
    late = threading.Timer(LAST, process.kill) if process else None
    if late:
        late.start()
    try:
        wandb.teardown()
    except SystemExit:  # raised if the process exited with an error
        pass
    finally:
        if late:
            late.cancel()
