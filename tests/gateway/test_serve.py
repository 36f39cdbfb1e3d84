"""The gateway as a process: port, key, shutdown."""

import ctypes
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import Algorithmia
import pytest
import requests
from Algorithmia.algorithm import OutputType
from deployed import open_app
from predictors import Echo, echo_folder
from waiting import children, fork_server_has, until

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.deployment.monitor import read_calls
from free_ml_stack.gateway.serve import open_port

HERE = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store, _ = open_app(tmp_path / "data")
    deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())
    return tmp_path


@contextmanager
def process(root: Path, *arguments: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the gateway; yield the process and its URL when it has been printed."""
    command = [sys.executable, str(HERE / "serve_echo.py"), str(root), *arguments]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HERE}
    with subprocess.Popen(command, **options) as running:
        assert running.stdout
        line = running.stdout.readline()
        assert line, running.stderr and running.stderr.read()
        try:
            yield running, line.split()[-1]
        finally:
            running.terminate()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_url_is_printed_and_the_record_is_removed(root: Path, workers: str) -> None:
    with process(root, workers) as (running, url):
        record = root / "gateway.json"
        content = json.loads(record.read_text())
        assert content["url"] == url
        assert content["pid"] == running.pid
        assert re.fullmatch("sim[0-9a-f]{25}", content["key"])
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        assert Algorithmia.client(content["key"], url).algo("me/demo").pipe("word").result == "hello"
        running.terminate()
        output, errors = running.communicate(timeout=20)
        assert (running.returncode, output, errors) == (0, "stopped\n", "")
        assert not record.exists()


def test_the_record_of_an_earlier_gateway_is_restored(root: Path) -> None:
    """Of two earlier ones, the second ends first."""
    record = root / "gateway.json"
    with open_port("127.0.0.1", 0) as first, open_port("127.0.0.1", 0) as second:
        url, other = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (first, second))
        earlier = {"url": url, "pid": os.getpid(), "key": "sim"}
        record.write_text(json.dumps({**earlier, "url": other, "before": earlier}))
        with process(root) as (_, latest):
            assert json.loads(record.read_text())["url"] == latest
            second.close()
        assert json.loads(record.read_text()) == earlier


def test_idle_clients_do_not_exhaust_the_connections(root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))  # the process inherits it
    try:
        starting = process(root)
        _, url = starting.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as idle:
        idle.push(starting)
        for _ in range(few + 86):
            idle.enter_context(socket.create_connection((host, int(port))))
        assert requests.get(f"{url}/healthz", timeout=10).ok


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_is_a_clean_shutdown(root: Path, workers: str) -> None:
    with process(root, workers) as (running, _):
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=20) == ("stopped\n", "")


@pytest.mark.parametrize("library", ["", "onnxruntime"])
def test_ctrl_c_during_the_start_is_a_clean_shutdown(root: Path, library: str) -> None:
    """It is sent to all processes: also to the fork server, which starts or imports packages."""
    with process(root, start_new_session=True) as (running, _):
        until(lambda: fork_server_has(library, running.pid))
        os.killpg(running.pid, signal.SIGINT)
        assert running.communicate(timeout=20) == ("stopped\n", "")


def test_a_port_in_use_is_reported_in_one_line(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, str(HERE / "serve_echo.py"), str(root), "1", str(port)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=HERE, timeout=60)
    assert run.returncode == 1
    assert run.stderr == f"cannot open 127.0.0.1:{port}: Address already in use; choose another port\n"


@pytest.mark.parametrize(("workers", "kill"), [("1", os.kill), ("2", os.kill), ("1", os.killpg)])
def test_a_call_in_flight_is_answered_and_logged_on_shutdown(
    root: Path, workers: str, kill: Callable[[int, int], None]
) -> None:
    """As systemd does, `killpg` terminates the model processes and their fork server, too."""
    with process(root, workers, start_new_session=True) as (running, url):
        key = json.loads((root / "gateway.json").read_text())["key"]
        algo = Algorithmia.client(key, url).algo("me/demo")
        answers = []
        begun = root / "begun"
        slow = {"sleep": 2, "begun": str(begun)}
        waiting = threading.Thread(target=lambda: answers.append(algo.pipe(slow).result))
        algo.pipe("word")
        waiting.start()
        until(begun.exists)
        Algorithmia.client(key, url).algo("me/demo").set_options(output=OutputType.void).pipe("void")
        kill(running.pid, signal.SIGTERM)
        output, errors = running.communicate(timeout=20)
        waiting.join()
    assert answers == [slow]
    assert (output, errors) == ("stopped\n", "")
    store, _ = open_app(root / "data")
    assert len(read_calls(store, "demo")) == 3


def test_a_worker_that_exits_is_replaced(root: Path) -> None:
    with process(root, "2") as (running, url):
        key = json.loads((root / "gateway.json").read_text())["key"]
        workers = children(running.pid)
        until(lambda: len(children(running.pid)) == 2)
        os.kill(children(running.pid)[0], signal.SIGKILL)
        until(lambda: len(children(running.pid)) == 2 and children(running.pid) != workers)
        for _ in range(5):
            answer = requests.get(f"{url}/readyz", headers={"X-API-Key": key}, timeout=10)
            assert answer.json() == {"status": "ready", "version": "0.1.0"}


def test_workers_that_fail_are_reported_and_not_started_in_a_loop(tmp_path: Path) -> None:
    """A signal after the gateway has ended gives no error."""
    program = """
import signal
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.serve import serve
def fail(keys): raise StackError("no store")
serve(fail, workers=2)
signal.raise_signal(signal.SIGTERM)
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        errors = [running.stderr.readline() for _ in range(2)]
        running.terminate()
        errors += running.communicate(timeout=20)[1].splitlines(keepends=True)
    assert running.returncode == 0
    assert set(errors) == {"a process of the gateway failed: no store\n"}
    assert len(errors) <= 4


def test_an_interrupted_deletion_of_a_folder_is_completed_later(root: Path) -> None:
    folder = root / "data" / ".part" / "deleted" / "inner"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    os.utime(folder.parent, (0, 0))
    with process(root) as (_, url):
        assert requests.get(f"{url}/healthz", timeout=10).ok
        assert not folder.parent.exists()


def adopt() -> None:
    """Make this process the parent of its orphans, as the first process of a container is."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def test_a_worker_is_replaced_once(root: Path) -> None:
    """The model processes of a killed worker also exit."""
    with process(root, "2", preexec_fn=adopt) as (running, _):
        until(lambda: len(children(running.pid)) == 2 and all(map(children, children(running.pid))))
        first, other = children(running.pid)
        models = [pid for child in children(first) for pid in (child, *children(child))]
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in children(running.pid) and not any(Path(f"/proc/{pid}").exists() for pid in models))
        assert len(children(running.pid)) == 2 and other in children(running.pid)


def test_small_responses_are_sent_immediately() -> None:
    """Without TCP_NODELAY a response in two segments waits 40 ms for the client's delayed acknowledgement."""
    with open_port("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
