"""A service that fails in the middle of the demo: it ends with what is made here, and what is missing goes later."""

import json
from pathlib import Path

import pytest
from services.hub_faults import Fault
from services.online import Online, online


def demo(services: Online) -> str:
    """What the demo prints, which must end well, without a traceback, and with its report."""
    printed = services.run("demo")
    assert "Traceback" not in printed
    assert (services.project / "report.html").exists()
    found = json.loads((services.project / "runs" / "demo.json").read_text())
    assert found["test_accuracy"] > 0.95
    assert found["calls"] == 270
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("first", [6])
def test_the_hub_fails_from_a_call_on(tmp_path: Path, first: int) -> None:
    with online(tmp_path) as services:
        (services.project / "sweep.yaml").write_text(
            (services.project / "sweep.yaml").read_text().replace("run_cap: 8", "run_cap: 1")
        )
        fault = Fault(500, range(first, 10**9))
        services.hub.app.faults.append(fault)
        printed = demo(services)
        assert "`digits-online publish` goes on" in printed
        services.hub.app.faults.clear()
        assert "Published at " in services.run("publish")


@pytest.mark.slow
@pytest.mark.parametrize("first", [25, 70])
def test_wandb_fails_from_a_call_on(tmp_path: Path, first: int) -> None:
    with online(tmp_path) as services:
        (services.project / "sweep.yaml").write_text(
            (services.project / "sweep.yaml").read_text().replace("run_cap: 8", "run_cap: 1")
        )
        services.environment |= {"WANDB_INIT_TIMEOUT": "5", "WANDB_FINISH_TIMEOUT": "5"}
        services.wandb.faults.append(Fault(500, range(first, 10**9)))
        printed = demo(services)
        assert "`digits-online sync` sends it" in printed
        services.wandb.faults.clear()
        services.run("sync")
        assert "Nothing to send" in services.run("sync")
