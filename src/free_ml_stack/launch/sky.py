"""SkyPilot: the task file of a managed job, which is recovered after a preemption and when a run can be resumed.

SkyPilot's parser accepts an unknown accelerator, a misspelt key of `job_recovery` and a missing folder, so that the
file is checked here.
"""

import re
import shlex
from pathlib import Path

from free_ml_stack.errors import StackError
from free_ml_stack.launch.job import Job, as_yaml, slug
from free_ml_stack.project.flags import unknown
from free_ml_stack.tracking.tracker import PREEMPTED

MAX_RESTARTS = 3  # after an exit code that is an error; preemptions do not count
PORT = 29400
# Names of SkyPilot's catalogue: `sky gpus list --all`.
GPUS = (
    "A10", "A10G", "A100", "A100-80GB", "B200", "B300", "GB200", "GH200", "H100", "H200", "L4", "L40", "L40S", "MI300X",
    "P4", "P100", "RTX3090", "RTX4090", "RTX5090", "RTX6000-Ada", "RTXA4000", "RTXA5000", "RTXA6000", "T4", "V100",
    "V100-32GB",
)  # fmt: skip

SETUP = """\
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
export PATH="$HOME/.local/bin:$PATH"
uv sync --no-dev{extras}
"""
TRAIN = """\
# One torchrun a node. On exit code 75, training can be resumed.
head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
exec .venv/bin/python -m free_ml_stack.launch.torchrun \\
    --nnodes "$SKYPILOT_NUM_NODES" --nproc-per-node {processes} --max-restarts 3 \\
    --rdzv-id "$SKYPILOT_TASK_ID" --rdzv-backend c10d --rdzv-endpoint "$head:{port}" \\
    -m {line}
"""
SWEEP = """\
# One sweep a node; the nodes share the trials.
exec .venv/bin/python -m {line}
"""


def write(job: Job, nodes: int, gpus: str, spot: bool) -> Path:
    """Write the task file of a job on machines with `gpus`, NAME or NAME:COUNT; return its path.

    Raises StackError for an unknown GPU, and for what other machines do not reach.
    """
    job.require_remote()
    name, count = parse_gpus(gpus)
    secrets = job.secrets()
    task = {
        "name": slug(job.name),
        "workdir": str(job.settings.root),
        "num_nodes": nodes,
        "resources": {
            **({"accelerators": f"{name}:{count}"} if name else {}),
            "use_spot": spot,
            "job_recovery": {"max_restarts_on_errors": MAX_RESTARTS, "recover_on_exit_codes": [PREEMPTED]},
        },
        "envs": {**job.variables(), "STACK_STORAGE": job.settings.storage},
        **({"secrets": dict.fromkeys(secrets)} if secrets else {}),
        "setup": SETUP.format(extras="".join(f" --extra {extra}" for extra in job.extras())),
        "run": (TRAIN if job.trains else SWEEP).format(processes=max(1, count), port=PORT, line=job.line()),
    }
    return job.write("sky.yaml", as_yaml(task))


def parse_gpus(text: str) -> tuple[str, int]:
    """Parse NAME or NAME:COUNT; return ("", 0) for an empty text. Raises StackError for an unknown name."""
    if not text:
        return "", 0
    given, _, count = text.partition(":")
    known = {name.lower(): name for name in GPUS}
    if not re.fullmatch(r"[1-9]\d*", count or "1"):
        raise StackError(f"--gpus: expected NAME or NAME:COUNT, got {text!r}")
    if given.lower() not in known:
        raise StackError(
            f"--gpus: {unknown(given, GPUS, 'GPU')}"
            " For another one, omit --gpus and add `--gpus NAME` to the `sky` command"
        )
    return known[given.lower()], int(count or 1)


def command(job: Job, path: str) -> str:
    """Return the command that starts the job; the values of the secrets are taken from its environment."""
    return " ".join(["sky jobs launch", *(f"--secret {name}" for name in job.secrets()), shlex.quote(path)])
