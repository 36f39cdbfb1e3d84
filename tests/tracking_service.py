"""A W&B service for tests, and the environment of a program that uses it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forking
import projects
from services.wandb_server import KEY, Wandb, serving


@contextmanager
def wandb_service() -> Iterator[Wandb]:
    """W&B on loopback."""
    service = Wandb()
    with serving(service):
        yield service


def account(home: Path, service: Wandb, **extra: str) -> dict[str, str]:
    """Return the environment of a new W&B user with a key."""
    own = {f"WANDB_{name}_DIR": str(home / f"wandb-{name}".lower()) for name in ("CACHE", "DATA", "CONFIG")}
    own["WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"] = "1"  # seconds; 15 by default
    own |= {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    return {**own, "STACK_TRACKER": "wandb", **extra}


def program(service: Wandb, text: str, code: int = 0) -> str:
    """Run a program with the real client in a new home; return its output."""
    with tempfile.TemporaryDirectory() as folder:
        environment = projects.environment(Path(folder), **account(Path(folder), service))
        process = forking.start(["-c", text], Path(folder), environment)
        printed, complaint = process.communicate(timeout=120)
    assert process.returncode == code, printed + complaint
    return printed
