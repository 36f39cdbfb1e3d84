"""Hugging Face Jobs: a script that holds the project, run on a machine of the Hub for a price an hour."""

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack import git
from free_ml_stack.console import say
from free_ml_stack.errors import StackError
from free_ml_stack.hub.client import client, http_error, with_retries
from free_ml_stack.launch import job_runner
from free_ml_stack.launch.job import Job
from free_ml_stack.project.flags import unknown

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds
BILLED = {"second": 3600, "minute": 60, "hour": 1}  # in an hour
HEADER = '# /// script\n# requires-python = ">=3.11"\n# ///\n'


def launch(job: Job, flavor: str, timeout: str, attempts: int, send: bool) -> str:
    """Print what a job costs, and run it if `send`; return its page, or "" if nothing was sent.

    `flavor` is the Hub's name of the machine, `timeout` the time limit of each of the `attempts`.
    Raises StackError for an unknown flavor or time, a missing secret, and a store that another machine does not reach.
    """
    from huggingface_hub.errors import HfHubHTTPError

    hours = parse_hours(timeout)
    job.require_remote()
    machine = find_machine(flavor)
    price = machine.unit_cost_usd * BILLED[machine.unit_label]
    gpus = int(machine.accelerator.quantity) if machine.accelerator else 0
    gpu = f", {gpus} x {machine.accelerator.model} {machine.accelerator.vram}" if machine.accelerator else ""
    most = price * hours * attempts
    say(
        f"{machine.name}: {machine.cpu}, {machine.ram}{gpu}: ${price:.2f} an hour; "
        f"at most ${most:.2f} for {attempts} x {timeout}."
    )
    path = job.write("job.py", script(job, max(1, gpus)))
    if not send:
        return ""
    secrets = job.secret_values()
    try:  # once only: a repeated request could start a second job
        info = client().run_uv_job(
            str(path),
            env={**job.variables(), "STACK_STORAGE": job.settings.storage},
            secrets=secrets,
            flavor=flavor,
            timeout=timeout,
            attempts=attempts,
            name=job.name,
        )
    except HfHubHTTPError as error:
        raise http_error(error) from None
    return str(info.url)


def parse_hours(text: str) -> float:
    """Return the hours of a time such as 90m or 4h. Raises StackError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found or not float(found[1]):
        raise StackError(f"--timeout: expected a time such as 90m or 4h, got {text!r}")
    return float(found[1]) * UNITS[found[2]] / UNITS["h"]


def find_machine(flavor: str) -> "JobHardwareInfo":
    """Return a machine by its name, with its price, from the Hub. Raises StackError for an unknown name."""
    api = client()
    machines = {machine.name: machine for machine in with_retries(api.list_jobs_hardware)}
    if flavor not in machines:
        raise StackError(f"--flavor: {unknown(flavor, machines, 'machine')}")
    return machines[flavor]


def script(job: Job, processes: int) -> str:
    """Return a script for `uv run` that unpacks the project, installs it and runs the command."""
    module = ["-m", job.package, *job.words]
    torchrun = ["free_ml_stack.launch.torchrun", "--standalone", "--nproc-per-node", str(processes)]
    given = {"words": ["-m", *torchrun, *module] if job.trains else module, "extras": job.extras()}
    sources = base64.b64encode(git.archive(job.settings.root)).decode()
    body = Path(str(job_runner.__file__)).read_text(encoding="utf-8")
    return f"{HEADER}{body}\nrun({json.dumps(json.dumps(given))}, {json.dumps(sources)})\n"
