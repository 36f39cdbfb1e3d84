"""All services on loopback, and a project with accounts there: `make demo-online`.

    python tests/services/online.py [FOLDER]

generates a project in FOLDER, with keys checked by the services, runs its demo with the four real clients, and
prints the contents of each service.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import forking
from baking import template
from services import hub_server, wandb_server
from services.hub_server import Hub, Token
from services.relay import Relay
from services.wandb_server import Wandb

ANSWERS = {
    "project_name": "Digits Online",
    "algorithmia_username": "me",
    "wandb_entity": "me",
    "huggingface_username": "me",
    "check_credentials": "require",
}
SLUG, PACKAGE = "digits-online", "digits_online"
KEYS = {
    "ALGORITHMIA_API_KEY": "sim0online0123456789abcdefgh",
    "WANDB_API_KEY": "online0123456789abcdef0123456789abcdef01",
    "HF_TOKEN": "hf_onlineABCDEFGHIJKLMNOPQRSTUVWXYZabcd",
}
SERVICES = ("WANDB", "HF_", "HUGGING", "ALGORITHMIA", "AWS", "STACK_")


@dataclass
class Online:
    """The services, the project, and the environment of its commands."""

    hub: Hub
    wandb: Wandb
    project: Path
    environment: dict[str, str]
    printed: str = field(default="", repr=False)
    server: forking.Server | None = None  # forks the commands

    def start(self, *arguments: str) -> forking.Running:
        """Start a command of the project with a single output stream."""
        return forking.start(["-m", PACKAGE, *arguments], self.project, self.environment, merged=True, by=self.server)

    def run(self, *arguments: str) -> str:
        """Run a command of the project and return its output. Raises RuntimeError if it fails."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=600)
        self.printed += printed
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed with exit code {process.returncode}:\n{printed}")
        return printed


@contextmanager
def online(folder: Path, relay: Relay | None = None) -> Iterator[Online]:
    """Yield a project in `folder`, generated with its keys checked, and all its services.

    Algorithmia is reached through `relay` if given.
    """
    hub, wandb = Hub(folder / "hub"), Wandb()
    hub.tokens = {KEYS["HF_TOKEN"]: Token()}
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SERVICES)}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    with ExitStack() as stack:
        elsewhere = folder / "elsewhere"
        generate(elsewhere, environment, check_credentials="skip")
        gateway = stack.enter_context(serve(elsewhere / SLUG, environment))
        if relay:
            relay.target, gateway = gateway, stack.enter_context(relay.serving())
        environment |= KEYS | {
            "ALGORITHMIA_API": gateway,
            "WANDB_BASE_URL": stack.enter_context(wandb_server.serving(wandb)),
            "HF_ENDPOINT": stack.enter_context(hub_server.serving(hub)),
        }
        printed = generate(folder, environment)
        project = folder / SLUG
        yield Online(hub, wandb, project, environment | {"PYTHONPATH": str(project / "src")}, printed)


def generate(folder: Path, environment: dict[str, str], **answers: str) -> str:
    """Generate the project as a user does; return the output."""
    shutil.rmtree(folder / SLUG, ignore_errors=True)
    given = [f"{name}={value}" for name, value in {**ANSWERS, **answers}.items()]
    command = [str(Path(sys.executable).with_name("cookiecutter")), str(template()), "--no-input", *given]
    command += ["--output-dir", str(folder)]
    done = subprocess.run(command, env=environment, stdout=-1, stderr=-2, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot generate the project:\n{done.stdout}")
    return str(done.stdout)


@contextmanager
def serve(project: Path, environment: dict[str, str]) -> Iterator[str]:
    """Yield the address of the project's gateway, which replaces an installation of Algorithmia."""
    own = {"PYTHONPATH": str(project / "src"), "ALGORITHMIA_API_KEY": KEYS["ALGORITHMIA_API_KEY"]}
    process = subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "serve"],
        cwd=project,
        env=environment | own,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        addresses = (line.split()[-1] for line in process.stdout if line.startswith("Serving on"))
        yield next(addresses)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()  # type: ignore[union-attr]


def main() -> None:
    """Run the demo with the services and print their contents."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch).resolve()
        shutil.rmtree(folder, ignore_errors=True)
        with online(folder) as services:
            print(services.printed)
            process = services.start("demo")
            assert process.stdout
            for line in process.stdout:
                print(line, end="", flush=True)
            if process.wait():
                sys.exit(process.returncode)
            print("\nContents of the services:")
            for run in services.wandb.store.runs.values():
                print(f"  W&B  run {run.name}: {run.state}, {len(run.history)} rows")
            for artifact in services.wandb.store.artifacts.values():
                print(f"  W&B  {artifact.kind} {artifact.collection}: {', '.join(sorted(artifact.aliases))}")
            for (kind, name), repo in services.hub.repos.items():
                print(f"  Hub  {kind} {name}: {len(repo.head.tree)} files")
            print(f"  Algorithmia  {services.environment['ALGORITHMIA_API']}: data, models, calls")


if __name__ == "__main__":
    main()
