"""Commands import the clients and torch only where they use them: these take seconds and hundreds of MB."""

import json
import subprocess
import sys
from pathlib import Path

import forking
import projects
import pytest

PROBE = """
import sys
import skeleton.__main__ as main
if __name__ == "__main__":
    sys.argv = ["skeleton", *{words!r}]
    try:
        main.main()
    except SystemExit as end:
        print("code:", end.code, file=sys.stderr)
    print("loaded:", sorted({{"torch", "wandb", "huggingface_hub"}} & set(sys.modules)), file=sys.stderr)
"""
COMMANDS = {
    "storage": (("storage", "push", "./elsewhere"), 0),
    "deploy": (("deploy", "--list"), 0),
    "info": (("info", "--json"), 0),
    "predict": (("predict", "[1]"), 1),  # no gateway is running
    "sync": (("sync",), 0),  # nothing to upload
    "serve": (("serve", "--port", "99999"), 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_without_training_import_neither_torch_nor_wandb(tmp_path: Path, name: str) -> None:
    words, code = COMMANDS[name]
    (tmp_path / "stack.toml").write_text('project = "skeleton"\nstorage = "algorithmia://.my/skeleton"\n')
    (tmp_path / ".stack/data/me/skeleton/data").mkdir(parents=True)
    (tmp_path / ".stack/data/me/skeleton/data/file").write_text("x")
    (tmp_path / "runs").mkdir()
    stdout = probe(tmp_path, words)
    assert stdout[-2:] == [f"code: {code}", "loaded: []"], stdout


def test_training_imports_no_client_that_it_does_not_use(data: Path, tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", data)
    stdout = probe(folder, ("train", "--epochs", "1"))
    assert stdout[-2:] == ["code: 0", "loaded: ['torch']"], stdout


def probe(folder: Path, words: tuple[str, ...]) -> list[str]:
    """The error output of a command, its exit code, and the imported modules."""
    script = folder / "probe.py"
    script.write_text(PROBE.format(words=words), "utf-8")
    environ = projects.environment(folder)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    return done.stderr.splitlines()


GARBAGE = """
import skeleton.train
fit = skeleton.train.fit

def counted(*given):
    import weakref
    class Cycle:
        def __init__(self):
            self.itself = self
    alive = [weakref.ref(Cycle()) for _ in range(5000)]
    print("kept:", sum(reference() is not None for reference in alive))
    return fit(*given)

skeleton.train.fit = counted
import skeleton.__main__ as main
main.main()
"""


def test_garbage_of_training_is_collected_soon(data: Path, tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", data)
    with forking.start(["-c", GARBAGE, "train", "--epochs", "1"], folder, projects.environment(folder)) as running:
        output, errors = running.communicate()
    assert running.returncode == 0, errors
    [kept] = [line for line in output.splitlines() if line.startswith("kept: ")]
    assert int(kept.removeprefix("kept: ")) < 1000


PROGRAM = """
import json, os, pathlib, sys
x = float(sys.argv[1].partition("=")[2])
record = pathlib.Path("runs", os.environ["WANDB_RUN_ID"])
record.mkdir(parents=True, exist_ok=True)
(record / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": x}) + "\\n")
"""


def test_a_sweep_of_another_program_imports_no_torch(tmp_path: Path) -> None:
    """Its workers do not either: a module named torch, which is found first, would raise an error."""
    (tmp_path / "stack.toml").write_text('project = "skeleton"\n')
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "torch.py").write_text("raise ImportError('not needed')\n")
    plan = {
        "program": "program.py",
        "method": "random",
        "metric": {"name": "loss", "goal": "minimize"},
        "run_cap": 2,
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
        "command": ["${interpreter}", "${program}", "${args}"],
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(plan))
    stdout = probe(tmp_path, ("sweep",))
    assert stdout[-2:] == ["code: 0", "loaded: []"], stdout
