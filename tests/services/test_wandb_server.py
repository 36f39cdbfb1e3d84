"""The loopback W&B service with the unmodified client."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from services.hub_faults import Fault
from services.wandb_server import KEY, Wandb
from services.wandb_store import Run, Sweep
from tracking_service import program, wandb_service

INIT = """
import json, os, wandb
def init(**more):
    options = {"silent": True, "console": "off", "finish_timeout": 20}
    return wandb.init(project="p", mode="online", settings=wandb.Settings(**options), **more)
"""


@pytest.fixture
def service() -> Iterator[Wandb]:
    with wandb_service() as served:
        yield served


def test_a_run_is_received_completely(service: Wandb) -> None:
    program(
        service,
        INIT
        + """
run = init(id="a", config={"lr": 0.1}, job_type="train")
for step in range(3):
    run.log({"loss": 1 / (step + 1)})
run.summary.update({"accuracy": 0.5})
run.finish()
""",
    )
    run = service.store.run("a")
    assert [row["loss"] for row in run.history] == [1, 1 / 2, 1 / 3]
    assert run.values["lr"] == 0.1
    assert run.summary["accuracy"] == 0.5
    assert run.facts["jobType"] == "train"
    assert run.state == "finished"
    assert {"config.yaml", "requirements.txt", "wandb-summary.json"} <= set(run.files)


def test_a_run_is_resumed_and_marked_as_preempted(service: Wandb) -> None:
    program(
        service,
        INIT + "run = init(id='a', resume='allow'); run.log({'x': 1}); run.mark_preempting(); run.finish(75)",
    )
    assert service.store.run("a").state == "preempted"
    again = "run = init(id='a', resume='allow'); print(run.starting_step); run.log({'x': 2}); run.finish()"
    assert program(service, INIT + again).strip() == "1"
    assert [(row["_step"], row["x"]) for row in service.store.run("a").history] == [(0, 1), (1, 2)]
    assert service.store.run("a").state == "finished"


def test_artifacts_have_versions_aliases_and_lineage(service: Wandb) -> None:
    printed = program(
        service,
        INIT
        + """
from pathlib import Path
Path("weights").write_text("first")
def artifact():
    made = wandb.Artifact("net", "model", metadata={"rows": 3})
    made.add_file("weights")
    return made
run = init(id="a")
run.log_artifact(artifact(), aliases=["best"]).wait()
Path("weights").write_text("second")
run.log_artifact(artifact()).wait()
run.log_artifact(artifact()).wait()  # the same again
run.finish()
run = init(id="b")
used = run.use_artifact("net:best")
print(used.version, used.metadata["rows"], Path(used.download("there"), "weights").read_text())
print(Path(run.use_artifact("net:latest").download("then"), "weights").read_text())
run.finish()
found = wandb.Api().run("p/b")
print([one.name for one in found.used_artifacts()], [one.name for one in wandb.Api().run("p/a").logged_artifacts()])
""",
    )
    assert printed.splitlines() == ["v0 3 first", "second", "['net:v0', 'net:v1'] ['net:v0', 'net:v1']"]


def test_the_public_api_reads_logged_data(service: Wandb) -> None:
    printed = program(
        service,
        INIT
        + """
for name, loss in (("a", 0.3), ("b", 0.1), ("c", 0.2)):
    run = init(id=name, config={"name": name})
    run.log({"loss": loss})
    run.finish()
api = wandb.Api()
print([run.id for run in api.runs("p", order="+summary_metrics.loss")])
print([run.id for run in api.runs("p", filters={"summary_metrics.loss": {"$lt": 0.25}, "config.name.value": "c"})])
run = api.run("p/a")
print(run.state, run.config, run.summary["loss"], [row["loss"] for row in run.scan_history(keys=["loss"])])
print(run.history(pandas=False)[0]["loss"], "config.yaml" in [file.name for file in run.files()])
""",
    )
    assert printed.splitlines() == [
        "['b', 'c', 'a']",
        "['c']",
        "finished {'name': 'a'} 0.3 [0.3]",
        "0.3 True",
    ]


SWEEP = """
import wandb.agents.pyagent
wandb.agents.pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.1
points = {"a": {"values": [3, 1, 2]}, "deep": {"parameters": {"b": {"value": 1}}}}
metric = {"name": "loss", "goal": "minimize"}
sweep = wandb.sweep({"method": "grid", "metric": metric, "parameters": points}, project="p")
"""


@pytest.mark.slow
def test_a_sweep_assigns_each_point_and_finds_the_best_run(service: Wandb) -> None:
    trial = """
def trial():
    with init() as run:
        assert run.config["deep"] == {"b": 1}
        run.log({"loss": run.config["a"]})
wandb.agent(sweep, trial, project="p")
"""
    program(service, INIT + SWEEP + trial)
    [sweep] = service.store.sweeps.values()
    assert sweep.state == "FINISHED"
    assert [service.store.run(name).values["a"] for name in sweep.runs] == [3, 1, 2]
    best = f"found = wandb.Api().sweep('me/p/{sweep.name}'); print(found.state, found.best_run().config['a'], len(found.runs))"
    assert program(service, INIT + best).strip() == "FINISHED 1 3"


@pytest.mark.slow
def test_a_preempted_trial_is_requeued(service: Wandb) -> None:
    trial = """
def trial():
    run = init(resume="allow")
    run.log({"loss": run.config["a"]})
    if run.config["a"] == 1 and not run.resumed:
        run.mark_preempting()
        run.finish(75)
    run.finish()
wandb.agent(sweep, trial, project="p", count=4)
"""
    program(service, INIT + SWEEP + trial)
    assert [len(service.store.run(name).history) for name in next(iter(service.store.sweeps.values())).runs] == [
        1,
        2,
        1,
    ]


def test_an_unknown_key_is_rejected(service: Wandb) -> None:
    service.refused.add(KEY)
    login = "print(wandb.login(verify=True, prompt=False))"
    text = f"import wandb\ntry:\n    {login}\nexcept Exception as error:\n    print(type(error).__name__)"
    assert program(service, text).strip() in ("AuthenticationError", "False")
    assert not service.store.runs


@pytest.mark.parametrize("kind", [429, 500, "reset", "slow"])
def test_a_transient_fault_loses_no_data(service: Wandb, kind: int | str) -> None:
    service.faults.append(Fault(kind, {1}, "file_stream"))
    program(service, INIT + "run = init(id='a'); run.log({'x': 1}); run.finish()")
    assert [row["x"] for row in service.store.run("a").history] == [1]


@pytest.mark.parametrize("kind", [401, 403])
def test_the_client_gets_the_error(service: Wandb, kind: int) -> None:
    service.faults.append(Fault(kind, None, "UpsertBucket"))
    text = "try:\n    init(id='a')\nexcept wandb.errors.CommError as error:\n    print('refused')"
    assert program(service, INIT + text).strip() == "refused"


def test_it_runs_as_a_program_and_starts_within_a_second() -> None:
    started = time.perf_counter()
    file = Path(__file__).with_name("wandb_server.py")
    server = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        assert time.perf_counter() - started < 5  # on a busy machine
    finally:
        server.terminate()
        server.communicate()


def test_lines_are_stored_at_their_offsets() -> None:
    run = Run("a", "me", "p")
    for offset in (0, 2, 0):  # the last one as after a lost response
        content = [json.dumps({"_step": offset + line}) for line in range(2)]
        run.stream({"files": {"wandb-history.jsonl": {"offset": offset, "content": content}}})
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("{distribution: log_uniform, min: -3, max: 0}", 0.04, 1.0),
        ("{distribution: inv_log_uniform_values, min: 2, max: 8}", 2.0, 8.0),
        ("{distribution: q_uniform, min: 0, max: 8, q: 4}", 0, 8),
        ("{distribution: q_log_normal, q: 0.5}", 0.0, 200.0),
        ("{distribution: normal, sigma: 0}", 0.0, 0.0),
        ("{distribution: beta}", 0.0, 1.0),
        ("{values: [1, 2], probabilities: [0, 1]}", 2, 2),
        ("{min: 3, max: 3.5}", 3, 3.5),
    ],
)
def test_a_sweep_draws_from_each_distribution(spec: str, low: float, high: float) -> None:
    config = yaml.safe_load(f"{{method: random, run_cap: 50, parameters: {{x: {spec}}}}}")
    found = [point["x"] for point in Sweep("s", "me", "p", config).points]
    assert len(found) == 50
    assert all(low <= value <= high for value in found)


def test_a_grid_supports_integers_and_steps() -> None:
    config = yaml.safe_load("{method: grid, parameters: {a: {min: 1, max: 2}, b: {min: 0, max: 1, q: 0.5}}}")
    points = [tuple(point.values()) for point in Sweep("s", "me", "p", config).points]
    assert points == [(1, 0), (1, 0.5), (2, 0), (2, 0.5)]
