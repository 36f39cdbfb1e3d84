"""The demo as run by a user, in a folder with an unusual name, without home, account or network."""

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import forking
import pytest
from baking import bake
from browsing import faults

PNG = b"\x89PNG"
SERVICES = ("WANDB", "HF_", "HUGGING", "ALGORITHMIA", "AWS", "STACK_")


def environment(home: Path, source: Path) -> dict[str, str]:
    """The environment of a user without credentials and with an empty home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SERVICES)}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project after its demo, and the demo's output."""
    folder = tmp_path_factory.mktemp("mit Platz und Ä")
    home = tmp_path_factory.mktemp("home")
    project = bake(folder, project_name="Ziffern", project_slug="ziffern", package_name="ziffern")
    done = subprocess.run(
        [forking.python(), "-m", "ziffern", "demo"],
        cwd=project,
        env=environment(home, project / "src"),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout


@pytest.mark.slow
def test_the_demo_prints_its_results(demo: tuple[Path, str]) -> None:
    project, printed = demo
    found = json.loads((project / "runs" / "demo.json").read_text())
    assert found["test"]["accuracy"] >= 0.97
    assert f"{found['test']['accuracy']:.4f}" in printed
    assert found["prediction"]["label"] in range(10)
    assert found["drift"] == "none"
    assert found["calls"] == 270
    for name in ("run", "model", "card", "report"):
        assert Path(found[name]).exists(), name
        assert str(Path(found[name]).relative_to(project)) in printed


@pytest.mark.slow
def test_every_step_wrote_its_results(demo: tuple[Path, str]) -> None:
    project, _ = demo
    store = project / ".stack" / "data" / "me" / "ziffern"
    for pattern in (
        "data/*.parquet",
        "models/*/model.onnx",
        "deployments/*/0.1.0-*/manifest.json",
        "logs/*/*.jsonl",
    ):
        assert list(store.glob(pattern)), pattern
    assert not (project / ".stack" / "gateway.json").exists()  # the gateway was stopped


@pytest.mark.slow
def test_printed_paths_are_relative(demo: tuple[Path, str]) -> None:
    project, printed = demo
    assert str(project) not in printed
    [best] = re.findall(r"train --config (\S+)`", printed)
    assert (project / best).name == "best.json" and (project / best).exists()


@pytest.mark.slow
def test_the_report_contains_all_pictures(demo: tuple[Path, str]) -> None:
    project, _ = demo
    page = Page()
    page.feed((project / "report.html").read_text())
    assert page.titles == ["Learning curves", "Confusion matrix", "Calibration", "Sweep", "Latency", "Drift"]
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


@pytest.mark.slow
def test_the_report_is_accessible(demo: tuple[Path, str]) -> None:
    assert faults((demo[0] / "report.html").as_uri()) == []


@pytest.mark.slow
def test_the_numbers_of_the_card_are_those_of_the_run(demo: tuple[Path, str]) -> None:
    import yaml

    project, _ = demo
    found = json.loads((project / "runs" / "demo.json").read_text())
    result = json.loads((Path(found["run"]) / "result.json").read_text())
    block = yaml.safe_load(Path(found["card"]).read_text().split("---\n")[1])
    metrics = {m["type"]: m["value"] for m in block["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {name: result["test"][name] for name in metrics}
    assert result["commit"]


class Page(HTMLParser):
    """The pictures of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            found = dict(attrs)
            self.titles.append(found["alt"] or "")
            self.sources.append(found["src"] or "")
