"""A real Slurm cluster on this machine: a controller, two nodes, and munge, from Debian's slurm-wlm and munge.

Two partitions: a job of `high` preempts those of `low`. munged and slurmd need root.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services import ports
from waiting import until

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_min_interval=100000
SlurmdTimeout=10
KillWait=5
{more}
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Return the missing programs with the command that installs them, "" if none are missing."""
    names = [name for name in NEEDED if not find(name)]
    if os.geteuid():
        return "Slurm's daemons need root: run `make test-engines` as root"
    return f"{', '.join(names)} not found: `apt-get install slurm-wlm munge`" if names else ""


def find(name: str) -> str | None:
    """The path of a program, also of a daemon, which a user's PATH may not have."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """A cluster that runs; `environ` is for the commands of its users."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder, self.environ = folder, dict(environ)

    def run(self, *words: str, **extra: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(words, env={**self.environ, **extra}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, script: Path, *options: str, **extra: str) -> str:
        """The number of a job."""
        return self.run("sbatch", "--parsable", *options, str(script), **extra)

    def job(self, number: str) -> dict[str, str]:
        """Return the controller's status of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words)

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]


@contextlib.contextmanager
def cluster(more: str = "") -> Iterator[Cluster]:
    """A cluster with additional lines of its configuration, until the block ends."""
    assert not missing(), missing()
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        folder.chmod(0o755)
        free = [ports.listening() for _ in range(3)]
        numbers = [one.getsockname()[1] for one in free]
        for one in free:
            one.close()
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(folder=folder, controller=numbers[0], n1=numbers[1], n2=numbers[2], more=more))
        environ = {**os.environ, "SLURM_CONF": str(config)}
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        start(
            stack, folder, environ, "munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        until(lambda: (folder / "munge.socket").exists(), 30)
        start(stack, folder, environ, "slurmctld", "-D", "-i", "-f", str(config))
        for node in ("n1", "n2"):
            start(stack, folder, environ, "slurmd", "-D", "-f", str(config), "-N", node)
        running = Cluster(folder, environ)
        until(lambda: ready(running), 60)
        try:
            yield running
        finally:
            running.run("scancel", "--full", "--signal=KILL", "--partition=low")
            running.run("scancel", "--partition=low,high")


def ready(running: Cluster) -> bool:
    """Whether both nodes are idle."""
    done = subprocess.run(
        ["sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D"], env=running.environ, capture_output=True, text=True
    )
    return done.stdout.strip() == "2"


def start(stack: contextlib.ExitStack, folder: Path, environ: Mapping[str, str], *words: str) -> None:
    """Start a daemon, which is stopped with the stack."""
    program = find(words[0])
    assert program
    log: Any = stack.enter_context((folder / f"{words[0]}-{words[-1]}.log".replace("/", "-")[-100:]).open("w"))
    process = subprocess.Popen([program, *words[1:]], env=environ, stdout=log, stderr=subprocess.STDOUT)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
