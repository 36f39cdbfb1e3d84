"""The gateway's OpenAPI description, and a fuzzer that uses it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from deployed import KEY, deployed
from predictors import Digits, digits_folder


def test_the_description_needs_a_key(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        assert requests.get(f"{gateway.url}/openapi.json", timeout=10).status_code == 401
        answer = requests.get(f"{gateway.url}/k/{KEY}/openapi.json", timeout=10)
        assert answer.json()["openapi"] == "3.1.0"


def narrowed(description: dict[str, Any], **values: str) -> dict[str, Any]:
    """Return the description with fixed values of some parameters, so that a fuzzer uses existing resources."""
    for path in description["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in values:
                    parameter["schema"] = {"enum": [values[parameter["name"]]]}
    return description


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", [{}, {"name": "demo", "collection": "project", "version": "0.1.0", "language": "python3"}]
)
def test_a_fuzzer_finds_nothing(tmp_path: Path, values: dict[str, str]) -> None:
    """No 5xx, no dropped connection and no traceback for requests of schemathesis."""
    with deployed(tmp_path, Digits(), digits_folder(tmp_path / "model")) as gateway:
        description = requests.get(f"{gateway.url}/k/{KEY}/openapi.json", timeout=10).json()
        (tmp_path / "openapi.json").write_text(json.dumps(narrowed(description, **values)))
        command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", gateway.url]
        command += [
            "--header",
            f"Authorization: {KEY}",
            "--checks",
            "not_a_server_error",
            "--phases",
            "coverage,fuzzing",
        ]
        command += ["--max-examples", "20", "--generation-deterministic", "--suppress-health-check", "all"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert re.search(r"\d{3,} generated, \d{3,} passed", done.stdout), done.stdout[-2000:]
        assert requests.get(f"{gateway.url}/healthz", timeout=10).ok
