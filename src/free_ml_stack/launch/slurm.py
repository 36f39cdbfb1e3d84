"""Slurm: the batch file of a job that is requeued after a preemption, a time limit or a lost node."""

import re
import shlex
import sys
from pathlib import Path

from free_ml_stack.errors import StackError
from free_ml_stack.launch.job import Job, slug

WARNING = 120  # seconds between SIGTERM and the time limit, for a checkpoint and its upload
TIME = re.compile(r"\d+(:\d{2}){0,2}|\d+-\d{1,2}(:\d{2}){0,2}")
PARTITION = re.compile(r"[\w.-]+(,[\w.-]+)*")
PORTS = "29400 + SLURM_JOB_ID % 2000"  # jobs that share a node need different ports

TRAIN = """\
# One torchrun a node, with the rendezvous at the address of this one, the first. Slurm's node names need no DNS entry.
head=$(scontrol --oneliner show node "$SLURMD_NODENAME" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)
srun --kill-on-bad-exit=0 --wait=60 {python} -m free_ml_stack.launch.torchrun \\
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node {processes} --max-restarts 3 \\
    --rdzv-id "$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" --rdzv-backend c10d --rdzv-endpoint "$head:$(({ports}))" \\
    -m {line} &"""
SWEEP = """\
# One sweep a node; the nodes share the trials.
srun --kill-on-bad-exit=0 {python} -m {line} &"""
SCRIPT = """\
#!/bin/bash
{directives}

# Slurm signals this script before the time limit and, if SlurmctldParameters has preempt_send_user_signal, at a
# preemption; scancel forwards the signal to the job's steps only.
stopped=
trap 'trap "" TERM; stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

{variables}{step}
wait $!
code=$?
if [ -n "$stopped" ]; then
    wait $!
    code=$?
fi

# 75 and 143: stopped by SIGTERM. The same run continues from its last checkpoint, on this node or another one.
if [ $code = 75 ] || [ $code = 143 ] || {{ [ -n "$stopped" ] && [ $code != 0 ]; }}; then
    state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z]*' | cut -d = -f 2)
    if [ "$state" != RUNNING ]; then # cancelled, or requeued by Slurm itself
        exit 143
    fi
    echo "Stopped with exit code $code; requeueing job $SLURM_JOB_ID."
    scontrol requeue "$SLURM_JOB_ID" # ends this script; a cluster with RequeueExit=75 needs the exit code only
    exit 75
fi
exit $code
"""


def write(job: Job, nodes: int, gpus: int, time: str, partition: str) -> Path:
    """Write the batch file of a job with `gpus` a node; empty for the cluster's time limit or partition.

    Returns its path. Raises StackError for an invalid time or partition.
    """
    if time and not TIME.fullmatch(time):
        raise StackError(f"--time: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, got {time!r}")
    if partition and not PARTITION.fullmatch(partition):
        raise StackError(f"--partition: expected a name, got {partition!r}")
    root = job.settings.root
    options = {
        "job-name": slug(job.name),
        "chdir": root,
        "output": str(job.settings.runs / f"{job.name}.log").replace("%", "%%"),  # %j would be the job's number
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus or "",
        "time": time,
        "partition": partition,
        "signal": f"B:TERM@{WARNING}",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value != ""]
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in job.variables().items())
    step = (TRAIN if job.trains else SWEEP).format(
        python=shlex.quote(sys.executable), processes=max(1, gpus), ports=PORTS, line=job.line()
    )
    directives = "\n".join([*lines, "#SBATCH --requeue"])
    text = SCRIPT.format(directives=directives, variables=f"{variables}\n" if variables else "", step=step)
    return job.write("sbatch", text)
