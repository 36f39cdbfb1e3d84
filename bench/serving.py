"""The gateway compared with its peers: the same digits model in the same run, one process each.

    python bench/serving.py [--quick] [--peers NAME,…]

Every figure is a ratio: the gateway and a peer are measured alternately at 1, 16 and 64 connections, and the best
round of each counts. The gateway logs each call and checks a key. Peers have separate environments in build/bench,
created on first use. Needs wrk and uv.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import places  # noqa: E402 - puts the skeleton on the path

KEY = "sim-of-the-benchmark"
IMAGE = [number % 17 for number in range(64)]
CONNECTIONS = (1, 16, 64)
UVICORN = ["uvicorn", "uvloop", "httptools"]


@dataclass(frozen=True)
class Peer:
    """A server: script in bench/peers, requirements, path and body of calls, and target ratios."""

    script: str
    path: str
    body: Any
    wanted: dict[int, float]  # by number of connections
    packages: tuple[str, ...] = ()  # empty: this repository's environment
    quick: bool = False


V2 = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": IMAGE}]}
PEERS = {
    "uvicorn, hello world": Peer("hello.py", "/", IMAGE, dict.fromkeys(CONNECTIONS, 0.55), quick=True),
    "Starlette + onnxruntime": Peer("starlette_onnx.py", "/predict", IMAGE, {64: 2.3}, quick=True),
    "FastAPI + torch": Peer(
        "fastapi_torch.py", "/predict", IMAGE, {64: 5.0}, ("fastapi", *UVICORN, "numpy", "torch>=2.8,<2.14")
    ),
    "LitServe": Peer("litserve_onnx.py", "/predict", {"input": IMAGE}, {64: 15.0}, ("litserve", "onnxruntime")),
    "BentoML": Peer("bentoml_onnx.py", "/predict", {"image": IMAGE}, {64: 30.0}, ("bentoml", "onnxruntime")),
    "MLServer": Peer("mlserver_onnx.py", "/v2/models/digits/infer", V2, {64: 10.0}, ("mlserver", "onnxruntime")),
    "mlflow models serve": Peer(
        "mlflow_onnx.py", "/invocations", {"inputs": [IMAGE]}, {64: 10.0}, ("mlflow", "onnxruntime")
    ),
}
SCRIPT = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "{key}"
wrk.body = [==[{body}]==]
"""


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one short round, and the two peers that need no installation"
    )
    parser.add_argument("--peers", default="", help="only peers with these prefixes")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("wrk not found; install it with `apt-get install wrk`")
    names = [name for name in PEERS if any(map(name.lower().startswith, args.peers.lower().split(",")))]
    names = [name for name in names if PEERS[name].quick or not args.quick]
    seconds, rounds = (1, 1) if args.quick else (4, 3)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        project = make_project(folder)
        with serve_gateway(project) as (compiling, _):
            print(f"first start, which may compile packages to bytecode: {compiling:.2f} s")
        started, gateway = stack.enter_context(serve_gateway(project))
        rows = [("seconds to start", started, "≤ 0.5", started <= 0.5)]
        own, mapped = settled_memory(gateway.pid)
        rows += against_peers(names, gateway, project, folder, seconds, rounds)
        rows.append(("memory without mapped files, MB", own, "≤ 90", own <= 90))
        rows.append(("memory with mapped files, MB", own + mapped, "≤ 90", own + mapped <= 90))
        rows += two_processes(gateway, project, folder, seconds, rounds)
    print_table(rows)


Row = tuple[str, float, str, bool]


@dataclass(frozen=True)
class Server:
    """A running server and its wrk options."""

    url: str
    script: Path
    pid: int


@dataclass(frozen=True)
class Load:
    """A result of wrk: requests per second, and the 99th percentile in milliseconds."""

    rate: float
    p99: float


def against_peers(
    names: list[str], gateway: Server, project: Path, folder: Path, seconds: int, rounds: int
) -> list[Row]:
    """Measure the gateway's rate relative to each peer."""
    rows: list[Row] = []
    for name in names:
        with serve_peer(name, project / "models" / "digits", folder) as peer:
            for connections, wanted in PEERS[name].wanted.items():
                mine, theirs = in_turns([gateway, peer], connections, seconds, rounds)
                ratio = mine.rate / theirs.rate
                rows.append((f"rate over {name}, {connections} connections", ratio, f"≥ {wanted:g}", ratio >= wanted))
                if name.startswith("uvicorn") and connections > 1:
                    limit = {16: 2.0, 64: 6.0}[connections]
                    rows.append(
                        (
                            f"99th percentile, ms, {connections} connections",
                            mine.p99,
                            f"≤ {limit:g}",
                            mine.p99 <= limit,
                        )
                    )
                    print(f"{name}, {connections}: {theirs.rate:.0f}/s, p99 {theirs.p99:.2f} ms")
    return rows


def two_processes(gateway: Server, project: Path, folder: Path, seconds: int, rounds: int) -> list[Row]:
    """Measure two workers relative to one."""
    other = shutil.copytree(project, folder / "two")
    with serve_gateway(other, "--workers", "2") as (_, two):
        one, both = in_turns([gateway, two], 64, seconds, rounds)
    ratio = both.rate / one.rate
    wanted = 1.4 if (os.cpu_count() or 1) >= 4 else 0.8  # one worker uses two processes: the model's and its own
    return [("two workers over one, 64 connections", ratio, f"≥ {wanted:g}", ratio >= wanted)]


def in_turns(servers: list[Server], connections: int, seconds: int, rounds: int) -> list[Load]:
    """Return the best round of each server, after a round to warm up."""
    best: list[Load | None] = [None] * len(servers)
    for number in range(rounds + 1):
        for place, server in enumerate(servers):
            load = wrk(server, connections, seconds if number else 1)
            kept = best[place]
            if number and (kept is None or load.rate > kept.rate):
                best[place] = load
    return [load for load in best if load]


def wrk(server: Server, connections: int, seconds: int) -> Load:
    """Run wrk on a server."""
    command = [
        "wrk",
        "--threads",
        "1",
        "--connections",
        str(connections),
        "--duration",
        f"{seconds}s",
        "--timeout",
        "30s",
        "--latency",
    ]
    done = subprocess.run(
        [*command, "--script", str(server.script), server.url], capture_output=True, text=True, check=True
    )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"{server.url} failed:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", done.stdout)
    assert rate
    assert p99
    return Load(float(rate[1]), float(p99[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]])


def make_project(folder: Path) -> Path:
    """Create a project with a deployed digits model; random weights take the same time."""
    import digits
    import numpy as np
    import torch
    from skeleton import model, predict
    from skeleton.config import TrainConfig

    from free_ml_stack.deployment.deploy import deploy
    from free_ml_stack.evaluation.drift import reference
    from free_ml_stack.project.science import Science
    from free_ml_stack.storage.local import local_store
    from free_ml_stack.storage.manifest import write_manifest
    from free_ml_stack.training.export import write_onnx

    project = folder / "project"
    models = project / "models" / "digits"
    models.mkdir(parents=True)
    (project / "stack.toml").write_text(
        'project = "bench"\nstorage = "algorithmia://.my/bench"\nalgorithm = "me/Bench"\n'
    )
    net = model.build(TrainConfig(), digits.FACTS).eval()
    example = torch.zeros(2, 8, 8)
    model.save(net, models)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        write_onnx(Science("skeleton"), TrainConfig(), net, digits.split(example), models / "model.onnx")
        torch.jit.trace(net, example).save(str(models / "model.pt"))
    loaded = predict.load(models)
    images = np.random.default_rng(0).integers(0, 17, (200, 64)).tolist()
    answers = predict.apply_batch(images, loaded)
    known = reference([predict.watch(*pair, loaded) for pair in zip(images, answers, strict=True)])
    (models / "reference.json").write_text(json.dumps(known))
    (models / "sample.json").write_text(json.dumps({"input": IMAGE, "output": predict.apply(IMAGE, loaded)}))
    write_manifest(models)
    deploy(models, local_store(project / ".stack" / "data" / "me" / "bench"), "Bench", predict)
    return project


@contextmanager
def serve_gateway(project: Path, *options: str) -> Iterator[tuple[float, Server]]:
    """Start the project's `serve`; yield it and the seconds until it was ready."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(ROOT / "build" / "pycache")}  # compiled, as after an installation
    environment |= {
        "PYTHONPATH": str(places.SOURCE),
        "ALGORITHMIA_API_KEY": KEY,
        "HOME": str(project),
    }
    command = [sys.executable, "-m", "skeleton", "serve", "--port", str(port), *options]
    start = time.perf_counter()
    with running(command, project, environment) as process:
        wait_for(port, "/readyz", process)
        started = time.perf_counter() - start
        script = write_script(project / "call.lua", IMAGE)
        yield started, Server(f"http://127.0.0.1:{port}/v1/algo/me/Bench", script, process.pid)


@contextmanager
def serve_peer(name: str, model: Path, folder: Path) -> Iterator[Server]:
    """Start a peer and check one call."""
    peer, port = PEERS[name], free_port()
    python = environment_of(peer)
    script = ROOT / "bench" / "peers" / peer.script
    with running([str(python), str(script), str(model), str(port)], script.parent, dict(os.environ)) as process:
        wait_for(port, "/", process)
        lua = write_script(folder / f"{peer.script}.lua", peer.body)
        server = Server(f"http://127.0.0.1:{port}{peer.path}", lua, process.pid)
        end = time.monotonic() + 60
        while True:
            try:
                wrk(server, 1, 1)
                break
            except SystemExit:
                if time.monotonic() > end:
                    raise
        yield server


def environment_of(peer: Peer) -> Path:
    """Return the interpreter of a peer's environment, created if missing."""
    if not peer.packages:
        return Path(sys.executable)
    folder = ROOT / "build" / "bench" / Path(peer.script).stem.split("_")[0]
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        subprocess.run(
            ["uv", "pip", "install", "--quiet", "--python", str(python), "numpy", *peer.packages], check=True
        )
    return python


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and terminate it and its children at the end."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - shown where the process fails
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        for number in (15, 9):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(20)
        log.close()


def wait_for(port: int, path: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until a port answers HTTP: with success if `path` is given, with any status otherwise."""
    end = time.monotonic() + seconds
    wanted = b"HTTP/1.1 200" if path == "/readyz" else b"HTTP/1"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended")
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                if connection.recv(100).startswith(wanted):
                    return
        except OSError:
            time.sleep(0.005)
    raise SystemExit(f"{process.args!r} does not answer")


def write_script(path: Path, body: Any) -> Path:
    """Write the request of wrk."""
    path.write_text(SCRIPT.format(key=KEY, body=json.dumps(body)))
    return path


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def settled_memory(pid: int) -> tuple[float, float]:
    """Return the memory as `memory` does, once the gateway has loaded the model's spare process, too."""
    before, now = (0.0, 0.0), memory(pid)
    while now != before:
        time.sleep(0.5)
        before, now = now, memory(pid)
    return now


def memory(pid: int) -> tuple[float, float]:
    """Return the memory of a process and its children in MB: their own, and that of mapped files, e.g. libraries.

    Memory shared by several processes counts once. The latter depends on the page cache: around each page that a
    program uses, the kernel also maps those that are cached.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    size = {name: int(rest.split()[0]) * 1024 / 1e6 for name, _, rest in (line.partition(":") for line in lines[1:])}
    own, mapped = size["Pss_Anon"] + size["Pss_Shmem"], size["Pss_File"]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            more = memory(int(child))
            own, mapped = own + more[0], mapped + more[1]
    return own, mapped


def print_table(rows: list[Row]) -> None:
    """Print measured values and targets."""
    width = max(len(row[0]) for row in rows)
    for what, value, wanted, met in rows:
        print(f"{what:<{width}}  {value:>8.2f}  {wanted:>7}  {'yes' if met else 'NO'}")


if __name__ == "__main__":
    main()
