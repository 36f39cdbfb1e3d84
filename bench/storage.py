"""Storage compared with peers on loopback: nginx and curl for large files, the official client for all sizes.

    python bench/storage.py [--quick] [--folder FOLDER]

Every figure is a ratio of the best of several alternating rounds. The files are in FOLDER, by default in memory, so
that no disk is measured. Needs nginx and curl.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import places  # noqa: F401 - puts the skeleton on the path

KEY = "sim-of-the-benchmark"
MIB = 1 << 20
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; tcp_nopush on; client_max_body_size 0; client_body_temp_path {folder}/bodies;
  server {{ listen 127.0.0.1:{port}; root {folder}/files; location / {{ dav_methods PUT; }} }}
}}
"""
Row = tuple[str, float, float, str]  # figure, measured, target, unit ("×" at least, "MiB" at most)


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 MiB and 1,000 files instead of 1 GiB and 10,000")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
        tempfile.tempdir = str(folder)  # the client's getFile leaves its files there
        os.environ.pop("REQUESTS_CA_BUNDLE", None)
        gateway, process = stack.enter_context(serve_gateway(folder))
        nginx = stack.enter_context(serve_nginx(folder))
        size, count, rounds = (64, 1000, 5) if args.quick else (1024, 10_000, 7)
        big = folder / "big"
        with big.open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(MIB))
        rows = large_files(folder, big, gateway, nginx, rounds)
        rows += small_files(folder, gateway, count)
        rows += memory(folder, gateway, process, 256 if args.quick else 4096)
    report(rows)


def large_files(folder: Path, big: Path, gateway: str, nginx: str, rounds: int) -> list[Row]:
    """Compare the gateway with nginx, and the file system with curl and the official client."""
    import Algorithmia

    from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem

    fs, client = AlgorithmiaFileSystem(gateway, KEY), Algorithmia.client(KEY, gateway)
    data = f"{gateway}/v1/data/.my/bench"
    fs.put_file(str(big), ".my/bench/big")
    shutil.copy(big, folder / "nginx" / "files" / "big")

    def get_file() -> None:
        Path(client.file("data://.my/bench/big").getFile(as_path=True)).unlink()

    times = best(
        rounds,
        {
            "nginx get": lambda: curl("-o", "/dev/null", f"{nginx}/big"),
            "gateway get": lambda: curl("-o", "/dev/null", f"{data}/big"),
            "nginx put": lambda: curl("-T", str(big), f"{nginx}/up"),
            "gateway put": lambda: curl("-T", str(big), f"{data}/up"),
            "curl get": lambda: curl("-o", str(folder / "down"), f"{data}/big"),
            "fs get": lambda: fs.get_file(".my/bench/big", str(folder / "down")),
            "fs put": lambda: fs.put_file(str(big), ".my/bench/up"),
            "client get": get_file,
        },
    )
    return [
        ("gateway serves a file, of nginx's sendfile", times["nginx get"] / times["gateway get"], 0.9, "×"),
        ("gateway takes a file, of nginx's PUT", times["nginx put"] / times["gateway put"], 0.8, "×"),
        ("file system down, of curl to a file", times["curl get"] / times["fs get"], 1.0, "×"),
        ("file system up, of curl", times["gateway put"] / times["fs put"], 1.0, "×"),
        ("file system down, of the client's getFile", times["client get"] / times["fs get"], 3.0, "×"),
    ]


def small_files(folder: Path, gateway: str, count: int) -> list[Row]:
    """Compare files of 4 KiB with a loop of the official client."""
    import Algorithmia

    from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem

    fs, client = AlgorithmiaFileSystem(gateway, KEY), Algorithmia.client(KEY, gateway)
    source = folder / "small"
    source.mkdir()
    for number in range(count):
        (source / f"{number:05d}").write_bytes(os.urandom(4096))

    def put_loop() -> None:
        for path in source.iterdir():
            client.file(f"data://.my/loop/{path.name}").putFile(str(path))

    def get_loop() -> None:
        shutil.rmtree(client.dir("data://.my/loop").getDir())

    times = best(
        1,
        {
            "fs put": lambda: fs.put(f"{source}/", ".my/small/", recursive=True),
            "client put": put_loop,
            "fs get": lambda: fs.get(".my/small/", f"{folder}/back/", recursive=True),
            "client get": get_loop,
        },
    )
    assert {path.name for path in (folder / "back").iterdir()} == {path.name for path in source.iterdir()}
    return [
        (f"{count:,} small files up, of the client's loop", times["client put"] / times["fs put"], 5.0, "×"),
        (
            f"{count:,} small files down, of the client's loop",
            times["client get"] / times["fs get"],
            5.0,
            "×",
        ),
    ]


def memory(folder: Path, gateway: str, process: int, largest: int) -> list[Row]:
    """Measure the additional memory of both sides for a small and a large file."""
    rows: list[Row] = []
    for size in (10, largest):
        with (folder / "sized").open("wb") as file:
            file.truncate(size * MIB)
        Path(f"/proc/{process}/clear_refs").write_text("5")  # reset the peak
        before = peak(process)
        command = [sys.executable, __file__, "--transfer", gateway, str(folder / "sized")]
        added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows += [
            (f"memory of the file system over import, {size} MiB both ways", added, 64.0, "MiB"),
            (f"memory of the gateway over idle, {size} MiB both ways", peak(process) - before, 64.0, "MiB"),
        ]
    return rows


def transfer_once(gateway: str, path: str) -> None:
    """Print the MiB that an upload and a download add to this process's peak."""
    from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem

    fs = AlgorithmiaFileSystem(gateway, KEY)
    fs.exists(".my/bench")
    before = peak(os.getpid())
    fs.put_file(path, ".my/bench/sized")
    fs.get_file(".my/bench/sized", f"{path}.back")
    with fs.open(".my/bench/sized") as file:
        while file.read(MIB):
            pass
    Path(f"{path}.back").unlink()
    print(peak(os.getpid()) - before)


def peak(process: int) -> float:
    """Return the peak memory of a process in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def best(rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the shortest time of each call in seconds; the calls alternate."""
    times: dict[str, float] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name] = min(times.get(name, float("inf")), time.perf_counter() - begin)
    return times


def curl(*arguments: str) -> None:
    """Run curl with the benchmark's key."""
    command = ["curl", "--silent", "--fail", "--header", f"Authorization: {KEY}", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def serve_nginx(folder: Path) -> Iterator[str]:
    """Serve a folder with nginx, with sendfile and PUT."""
    port = free_port()
    (folder / "nginx" / "files").mkdir(parents=True)
    settings = folder / "nginx" / "nginx.conf"
    user = "user root;\n" if os.getuid() == 0 else ""
    settings.write_text(user + NGINX.format(folder=folder / "nginx", port=port))
    with subprocess.Popen(["nginx", "-c", str(settings)]) as server:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@contextmanager
def serve_gateway(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the gateway without a model in a separate process."""
    record = folder / "gateway.json"
    with subprocess.Popen([sys.executable, __file__, "--serve", str(folder / "store"), str(record)]) as server:
        while not record.exists():
            time.sleep(0.05)
        yield json.loads(record.read_text())["url"], server.pid
        server.terminate()


def run_gateway(store: Path, record: Path) -> None:
    """Serve until terminated."""
    from free_ml_stack.gateway.app import Gateway
    from free_ml_stack.gateway.serve import serve
    from free_ml_stack.storage.local import local_store

    def app(keys: Any) -> Any:
        project = local_store(store / "me" / "project")
        return Gateway(
            store=local_store(store),
            project=project,
            user="me",
            keys=keys,
            algorithm="me/none",
            predictor=None,
        )

    serve(app, keys=[KEY], record=record, say=lambda line: None)


def free_port() -> int:
    """Return a free port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Wait until a port is open."""
    import socket

    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


def report(rows: list[Row]) -> None:
    """Print the table."""
    print("| figure | measured | target | |")
    print("| --- | ---: | ---: | --- |")
    for what, measured, wanted, unit in rows:
        good = measured >= wanted if unit == "×" else measured <= wanted
        sign = "≥" if unit == "×" else "≤"
        print(f"| {what} | {measured:.2f} {unit} | {sign} {wanted:g} {unit} | {'yes' if good else 'NO'} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        run_gateway(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--transfer"]:
        transfer_once(*sys.argv[2:4])
    else:
        main()
