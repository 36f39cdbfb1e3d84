"""Draw the pictures of docs/ from a real demo of each task: two plots of each, one report, and the gateway's page.

make setup browser && .venv/bin/python docs/pictures.py [TASK ...]
"""

import base64
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from baking import bake  # noqa: E402
from browsing import opened  # noqa: E402
from waiting import until  # noqa: E402

PLOTS = {
    "image-classification": ("learning_curves", "confusion_matrix"),
    "text-classification": ("learning_curves", "confusion_matrix"),
    "tabular-classification": ("feature_importances", "confusion_matrix"),
    "tabular-regression": ("feature_importances", "predicted_against_true"),
}
HEIGHT = 380  # pixels of the plots of a task
MINUTES = 4  # of calls before the picture of the gateway's page


def start(project: Path, *command: str) -> "subprocess.Popen[bytes]":
    """Start a command of a project, without keys."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(project.parent), "PYTHONPATH": str(project / "src")}
    return subprocess.Popen([sys.executable, "-m", "my_ml_project", *command], cwd=project, env=environment)


def draw_task(project: Path, task: str) -> None:
    """Draw two plots of a demo next to each other."""
    model = Path(json.loads((project / "runs" / "demo.json").read_text(encoding="utf-8"))["model"])
    plots = [Image.open(model / f"{name}.png").convert("RGB") for name in PLOTS[task]]
    plots = [plot.resize((round(plot.width * HEIGHT / plot.height), HEIGHT)) for plot in plots]
    picture = Image.new("RGB", (sum(plot.width for plot in plots), HEIGHT), "white")
    for number, plot in enumerate(plots):
        picture.paste(plot, (sum(plot.width for plot in plots[:number]), 0))
    save(picture, task)


def save(picture: Any, name: str) -> None:
    """Write a picture with 256 colours, which has a third of the bytes."""
    picture.convert("RGB").quantize(256).save(ROOT / "docs" / f"{name}.png", optimize=True)


def photograph(url: str, name: str, ready: str = "true") -> None:
    """Draw a page in Chromium, in light colours."""
    with opened() as page:
        page.look(1280, dark=False)
        page.open(url, ready)
        picture = base64.b64decode(page.call("Page.captureScreenshot")["data"])
        save(Image.open(io.BytesIO(picture)), name)


def call_gateway(url: str, key: str) -> None:
    """Call the deployed model with the digits at a rate that changes, and sometimes with an invalid input."""
    from sklearn.datasets import load_digits

    images, session = load_digits().images.tolist(), requests.Session()
    session.headers["Authorization"] = key
    begun = time.monotonic()
    for number in range(1 << 20):
        seconds = time.monotonic() - begun
        if seconds > 60 * MINUTES:
            return
        payload = "no image" if number % 400 == 399 else images[number * 7 % len(images)]
        session.post(f"{url}/v1/algo/me/MyMlProject", json=payload, timeout=60)
        time.sleep(0.03 + 0.02 * math.sin(seconds / 20))


def main() -> None:
    """Run the demos and draw all pictures, or those of the given tasks."""
    for task in sys.argv[1:] or PLOTS:
        folder = Path(tempfile.mkdtemp(prefix=task, dir=ROOT / "build"))
        project = bake(folder, hooks=False, task=task)
        if start(project, "demo").wait():
            sys.exit(f"the demo of {task} failed")
        draw_task(project, task)
        if task != "image-classification":
            continue
        photograph((project / "report.html").as_uri(), "report")
        server, record = start(project, "serve"), project / ".stack" / "gateway.json"
        until(lambda record=record, server=server: record.exists() or server.poll() is not None)
        served = json.loads(record.read_text(encoding="utf-8"))
        call_gateway(served["url"], served["key"])
        shown = "!document.getElementById('figures').hidden"
        photograph(f"{served['url']}/#key={served['key']}", "gateway", shown)
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
