"""All commands in unusual environments give the same result, or one line that names the cause."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import forking
import forkserver
import projects
import pytest
from waiting import until

SWEEP = """
method: grid
metric: {name: validation_loss, goal: minimize}
parameters: {lr: {values: [0.006]}, epochs: {value: 1}}
"""
TRAIN = ("train", "--epochs", "1", "--name", "one")
NOWHERE = "http://127.0.0.1:9"


def untouched(folder: Path) -> Path:
    """The state of the project."""
    return folder


def with_windows_line_ends(folder: Path) -> Path:
    for name in ("stack.toml", "sweep.yaml", ".env"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    return folder


def with_byte_order_marks(folder: Path) -> Path:
    for name in ("stack.toml", "sweep.yaml", ".env"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    return folder


def moved(folder: Path) -> Path:
    return folder.rename(folder.with_name("elsewhere"))


def linked(folder: Path) -> Path:
    link = folder.with_name("link")
    link.symlink_to(folder)
    return link


def with_an_unreadable_home(folder: Path) -> Path:
    """Make a home that belongs to another user; root, who could read it, loses that right in UNREADABLE."""
    home = folder.parent / "home"
    (home / ".config").mkdir(parents=True)
    home.chmod(0)
    if os.getuid() == 0:
        os.chown(home, 12345, 12345)
    return folder


@dataclass(frozen=True)
class Odd:
    """An environment: variables, shell code around a command, changes of files."""

    variables: dict[str, str] = field(default_factory=dict)
    shell: str = ""  # {} is the command
    before: Callable[[Path], Path] = untouched
    after_training: Callable[[Path], Path] = untouched
    silent: bool = False  # prints nothing


UNREADABLE = "exec unshare --user --map-root-user {}" if os.getuid() == 0 else "exec {}"
FOLDERS = ("project", "a[1]", "a#b", "100%", "with space", "ü 世界", "*", "{x,y}", "p" * 150)
ODD = {  # some are combined, where neither hides a failure of the other
    "plain": Odd(),
    "no home, another time": Odd(variables={"HOME": "", "TZ": "Asia/Kathmandu"}),
    "a home that is missing, a proxy": Odd(
        variables={"HOME": "/nonexistent/home", **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), NOWHERE)}
    ),
    "a home that is a file, a narrow terminal": Odd(
        variables={"HOME": "/etc/hostname", "COLUMNS": "1", "TERM": "dumb"}
    ),
    "a home of another user, C without UTF-8": Odd(
        variables={"HOME": "{tmp}/home", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        shell=UNREADABLE,
        before=with_an_unreadable_home,
    ),
    "a proxy for all, a Hub that is off": Odd(
        variables={**dict.fromkeys(("ALL_PROXY", "all_proxy"), "socks5://127.0.0.1:9"), "HF_HUB_OFFLINE": "1"}
    ),
    "a strict umask, no input, optimized": Odd(
        variables={
            "PYTHONOPTIMIZE": "2",
            "PYTHONHASHSEED": "7",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": "{tmp}/optimized",  # compile once
        },
        shell="umask 077; exec {} 0<&-",
    ),
    "no umask, no errors, C": Odd(variables={"LANG": "C", "LC_ALL": "C"}, shell="umask 000; exec {} 2>&-"),
    "no output": Odd(shell="exec {} 1>&-", silent=True),
    "no streams at all": Odd(shell="exec {} 0<&- 1>&- 2>&-", silent=True),
    "ASCII, CRLF": Odd(variables={"PYTHONIOENCODING": "ascii"}, before=with_windows_line_ends),
    "a long TMPDIR, linked": Odd(variables={"TMPDIR": "{tmp}/" + "t" * 120}, before=linked),
    "warnings as errors, development mode": Odd(
        variables={"PYTHONWARNINGS": "error::UserWarning:free_ml_stack", "PYTHONDEVMODE": "1"}
    ),
    "GIT_DIR, moved": Odd(variables={"GIT_DIR": "/nonexistent/.git", "GIT_WORK_TREE": "/"}, after_training=moved),
    "GIT_INDEX_FILE, BOM": Odd(
        variables={"GIT_INDEX_FILE": "/nonexistent/index", "GIT_CONFIG_GLOBAL": "/nonexistent"},
        before=with_byte_order_marks,
    ),
    "certificates that are missing": Odd(variables={"SSL_CERT_FILE": "/nonexistent/ca.pem"}),
}


class Commands:
    """The project's commands in an unusual environment."""

    def __init__(self, odd: Odd, folder: Path, variables: dict[str, str], server: forking.Server) -> None:
        self.odd, self.folder, self.variables, self.server = odd, folder, variables, server

    def prints(self, text: str, *words: str) -> bool:
        """Run a command; return whether it prints a text, or nothing where it cannot print."""
        printed = self(*words)
        return not printed if self.odd.silent else text in printed

    def __call__(self, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a command; check its exit code and that it prints no traceback, and return its standard output."""
        process = self.start(*words)
        printed, complaint = process.communicate(timeout=300)
        assert process.returncode in codes, printed + complaint
        assert "Traceback" not in printed + complaint
        return printed

    def start(self, *words: str) -> forking.Process:
        """Start a command."""
        environ = projects.environment(self.folder, **self.variables)
        return forking.Process(["-m", "skeleton", *words], self.folder, environ, False, self.server)

    def predict(self) -> str:
        """Return the result of a call of the project's gateway."""
        record = self.folder / ".stack" / "gateway.json"
        with self.start("serve") as serving:
            try:
                until(record.exists)
                return self("predict")
            finally:
                serving.terminate()


@contextmanager
def commands(odd: Odd, folder: Path) -> Iterator[Commands]:
    """The project's commands, in processes that started in the environment."""
    variables = {name: value.replace("{tmp}", str(folder.parent)) for name, value in odd.variables.items()}
    if "TMPDIR" in variables:
        Path(variables["TMPDIR"]).mkdir()
    folder = odd.before(folder)
    startup = {name: value for name, value in variables.items() if name.startswith(forkserver.STARTUP)}
    if not startup and not odd.shell:
        yield Commands(odd, folder, variables, forking.server())
        return
    server = forking.Server(startup, odd.shell or "exec {}")
    try:
        yield Commands(odd, folder, variables, server)
    finally:
        forking.end_all()
        server.close()


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The test accuracy of the run in a plain environment."""
    folder = projects.make(tmp_path_factory.mktemp("plain") / "project", data)
    projects.run(folder, *TRAIN)
    return accuracy(folder)


def accuracy(folder: Path) -> float:
    found: float = json.loads((folder / "runs/one/result.json").read_bytes())["test"]["accuracy"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_every_command_works_in_unusual_environments(data: Path, tmp_path: Path, name: str, expected: float) -> None:
    odd = ODD[name]
    folder = projects.make(tmp_path / FOLDERS[list(ODD).index(name) % len(FOLDERS)], data)
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / ".env").write_text("STACK_TITLE=Digits\n")
    with commands(odd, folder) as run:
        run_all(run, expected)


def run_all(run: Commands, expected: float) -> None:
    """Run all commands in order; doctor exits with 0 or 1, depending on the keys."""
    odd = run.odd
    printed = run("doctor", codes=(0, 1))
    assert "wandb" in printed.lower() or "w&b" in printed.lower() or odd.silent
    assert run.prints("Data set digits", "data")
    run(*TRAIN)
    assert accuracy(run.folder) == expected
    run.folder = odd.after_training(run.folder)
    assert run.prints("best.json", "sweep", "--agents", "1")
    assert run.prints("Model and card are in models/one", "publish")
    assert run.prints("Deployed model one as version 0.1.0", "deploy")
    printed = run.predict()
    if not odd.silent:
        answer, _ = json.JSONDecoder().raw_decode(printed)
        sample = json.loads((run.folder / "models/one/sample.json").read_bytes())
        assert answer["label"] == sample["output"]["label"]
    assert run.prints("1 calls of version 0.1.0, 0 failed", "monitor")
    assert run.prints("Nothing to upload", "sync")


@pytest.mark.parametrize("locale", ["C", "UTF-8"])
def test_a_path_that_is_not_text_is_reported_in_one_line(tmp_path: Path, locale: str) -> None:
    """Python decodes file names with the encoding of the locale."""
    name = {"C": "ü 世界".encode(), "UTF-8": b"caf\xe9"}[locale]
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    folder.mkdir()
    (folder / "stack.toml").write_text('project = "skeleton"\nstorage = "./store"\n')
    given = {"C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "UTF-8": {}}[locale]
    printed = projects.run(folder, "data", code=1, **given)
    [line] = printed.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(" is not valid UTF-8; rename it, or set PYTHONUTF8=1 if the locale is not UTF-8")
