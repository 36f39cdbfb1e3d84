"""`doctor` on a generated project: results, costs and exit codes."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
from baking import TEMPLATE, bake
from huggingface_hub import HfApi
from key_server import HF_KEY, WANDB_KEY, environment, serving, viewer, whoami
from services import hub_server
from services.hub_faults import Fault
from services.hub_server import Hub

from free_ml_stack.cli import doctor
from free_ml_stack.project import settings


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Run doctor on a project, new with the first call; return its exit code and output."""
    made = []

    def run(storage="algorithmia", as_json=False, environ=None, flags=None, **answers):
        made.extend([] if made else [bake(tmp_path, hooks=False, storage=storage, **answers)])
        for name in list(os.environ):
            if name.startswith(("WANDB_", "HF_", "ALGORITHMIA_", "AWS_")):
                monkeypatch.delenv(name)
        for name, value in environment(tmp_path, **(environ or {})).items():
            monkeypatch.setenv(name, value)
        code = doctor.doctor(settings.load(flags or {}, made[0]), as_json)
        return code, capsys.readouterr().out

    return run


def test_without_keys_there_are_no_problems_and_no_costs(examine):
    code, text = examine(as_json=True)
    found = json.loads(text)
    assert (code, found["wrong"]) == (0, [])
    assert {service["outcome"] for service in found["services"]} == {"missing"}
    assert all(cost["free"] for cost in found["costs"])
    assert found["versions"]["numpy"] and found["device"] and found["disk_free"] > 0
    assert found["storage"] == "algorithmia://.my/my-ml-project"


def test_the_text_output_ends_with_the_result(examine):
    code, text = examine()
    assert code == 0 and text.splitlines()[-1] == "No problems found."
    assert "Hugging Face: missing: no key found" in text and "a Docker Space requires PRO" in text


def test_a_rejected_key_is_a_problem(examine):
    with serving(status=401) as server:
        code, text = examine(environ={"WANDB_API_KEY": WANDB_KEY, "WANDB_BASE_URL": server.url})
    assert code == 1 and "problem: Weights & Biases: " in text.splitlines()[-1]
    assert WANDB_KEY[:-4] not in text


def test_an_outage_is_not_a_problem(examine):
    with serving(status=503) as server:
        code, text = examine(environ={"WANDB_API_KEY": WANDB_KEY, "WANDB_BASE_URL": server.url})
    assert code == 0 and "unknown: " in text


def test_accounts_in_settings_are_compared_with_the_keys(examine):
    with serving(body=viewer()) as wandb, serving(body=whoami(isPro=True)) as hub:
        addresses = {"WANDB_BASE_URL": wandb.url, "HF_ENDPOINT": hub.url}
        environ = {"WANDB_API_KEY": WANDB_KEY, "HF_TOKEN": HF_KEY, **addresses}
        code, text = examine(as_json=True, environ=environ, wandb_entity="elsewhere", huggingface_username="ada")
    found = json.loads(text)
    assert code == 1 and found["wrong"] == ["Weights & Biases: valid, as ada, which has no access to elsewhere"]
    assert "which you have" in next(cost["text"] for cost in found["costs"] if cost["part"] == "hosting")


def test_the_storage_used_on_the_hub_is_reported(examine, tmp_path):
    hub = Hub(tmp_path / "hub")
    with hub_server.serving(hub) as url:
        api = HfApi(endpoint=url, token="hf_write")
        api.create_bucket("me/things", private=True)
        api.batch_bucket_files("me/things", add=[(bytes(20_000_000), "big")])
        hub.put("model", "me/model", {"model.onnx": bytes(1000)})
        hub.put("model", "you/model", {"model.onnx": bytes(1000)})
        environ = {"HF_TOKEN": "hf_write", "HF_ENDPOINT": url}
        code, text = examine(as_json=True, environ=environ, storage="huggingface", huggingface_username="me")
        told = json.loads(text)["hub_storage"]
        assert told == {"account": "me", "private": 20_000_000, "public": 1181, "limit": 100e9}
        assert code == 0
        hub.app.faults = [Fault(403, match="repositories")]
        assert json.loads(examine(as_json=True, environ=environ)[1])["hub_storage"] == {}
        hub.app.faults = []
        assert "Hub: 0.02 of 100 GB private, 0.00 GB public, of me" in examine(environ=environ)[1]


GATEWAY = {
    "AWS_ENDPOINT_URL": "https://s3.hf.co/me",
    "AWS_ACCESS_KEY_ID": "HFAKofme",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def test_the_s3_gateway_of_the_hub_is_free_and_needs_four_settings(examine):
    code, text = examine(storage="s3", as_json=True, environ=GATEWAY)
    found = json.loads(text)
    assert (code, found["wrong"]) == (0, [])
    assert [cost["free"] for cost in found["costs"] if cost["part"] == "storage"] == [True]
    other = {"AWS_ENDPOINT_URL": "https://s3.hf.co", "AWS_ACCESS_KEY_ID": "AKIAofme", "AWS_DEFAULT_REGION": "eu-west-1"}
    code, text = examine(storage="s3", as_json=True, environ=other)
    assert code == 1
    assert [line.split()[0].rstrip(":") for line in json.loads(text)["wrong"]] == [
        "AWS_ENDPOINT_URL",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_RESPONSE_CHECKSUM_VALIDATION",
        "AWS_DEFAULT_REGION",
        "AWS_ACCESS_KEY_ID",
    ]


def test_the_aws_profile_is_read_too(examine, tmp_path):
    profile = tmp_path / "config"
    lines = ["[default]", "region = us-east-1", "endpoint_url = https://s3.hf.co/me"]
    lines += ["request_checksum_calculation = when_required", "response_checksum_validation = when_required"]
    profile.write_text("\n".join(lines))
    environ = {"AWS_CONFIG_FILE": str(profile), "AWS_ACCESS_KEY_ID": "HFAKofme"}
    assert examine(storage="s3", environ=environ)[0] == 0
    profile.write_text("\n".join(lines[:-1]))
    code, text = examine(storage="s3", environ=environ)
    assert code == 1 and "problem: AWS_RESPONSE_CHECKSUM_VALIDATION must be when_required" in text


def test_an_empty_key_in_the_environment_is_no_problem_beside_one_in_the_profile(examine, tmp_path):
    (tmp_path / ".aws").mkdir()
    secrets = "[default]\naws_access_key_id = HFAKofme\naws_secret_access_key = x\n"
    (tmp_path / ".aws" / "credentials").write_text(secrets)
    code, text = examine(storage="s3", as_json=True, environ=GATEWAY | {"AWS_ACCESS_KEY_ID": ""})
    assert (code, json.loads(text)["wrong"]) == (0, [])


def without(monkeypatch, *packages):
    """Hide packages from the imports of this process, as if their extra was not installed."""
    find = metadata.version

    def version(name):
        if name in packages:
            raise metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(metadata, "version", version)
    loaded = [name for name in sys.modules if name.partition(".")[0] in packages]
    for name in (*packages, *loaded):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("endpoint", ["https://s3.hf.co/me", "https://s3.example.org"])
def test_a_missing_client_of_s3_is_a_problem_with_its_remedy(examine, monkeypatch, endpoint):
    without(monkeypatch, "s3fs", "botocore")
    code, text = examine(storage="s3", as_json=True, environ=GATEWAY | {"AWS_ENDPOINT_URL": endpoint})
    assert code == 1
    (problem,) = json.loads(text)["wrong"]
    assert "s3fs is not installed; run `uv sync --extra s3`" in problem


def test_a_missing_trackio_is_a_problem_with_its_remedy(examine, monkeypatch):
    without(monkeypatch, "trackio")
    code, text = examine(flags={"tracker": "trackio"})
    assert code == 1
    assert "trackio is not installed; run `uv sync --extra trackio`" in text.splitlines()[-1]


def test_another_s3_service_needs_no_settings(examine):
    environ = {"AWS_ACCESS_KEY_ID": "AKIAofme", "AWS_ENDPOINT_URL": "https://s3.example.org"}
    code, text = examine(storage="s3", as_json=True, environ=environ)
    assert (code, json.loads(text)["wrong"]) == (0, [])
    assert [cost["free"] for cost in json.loads(text)["costs"] if cost["part"] == "storage"] == [False]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("storage", "nope://x", "nope://x: unknown storage"),
        ("storage", "hf://x", "hf://x: expected a storage URL"),
        ("storage", "", "storage '': expected a storage URL"),
        ("storage", "a\0b", "expected a storage URL"),
    ],
)
def test_an_invalid_setting_is_a_problem(examine, name, value, words):
    code, text = examine(flags={name: value})
    assert code == 1 and "problem: " in text.splitlines()[-1] and words in text.splitlines()[-1]


def test_a_rejected_key_of_an_unused_service_is_not_a_problem(examine):
    with serving(status=401) as server:
        environ = {"WANDB_API_KEY": WANDB_KEY, "WANDB_BASE_URL": server.url}
        code, text = examine(flags={"tracker": "none"}, environ=environ)
    assert code == 0 and "Weights & Biases: rejected" in text


def test_the_token_needs_write_access_to_the_model_repository(examine):
    with serving(body=whoami()) as hub:
        environ = {"HF_TOKEN": HF_KEY, "HF_ENDPOINT": hub.url}
        code, text = examine(flags={"model_repo": "lab/digits"}, environ=environ, huggingface_username="ada")
    assert code == 1 and "problem: Hugging Face: valid, as ada, which has no access to lab" in text


@pytest.mark.slow
def test_the_command_reads_the_projects_dotenv(tmp_path):
    project = bake(tmp_path, hooks=False)
    with serving(body=whoami()) as hub:
        (project / ".env").write_text(f"HF_TOKEN={HF_KEY}\nHF_ENDPOINT={hub.url}\n", encoding="utf-8")
        environ = environment(tmp_path, PATH=os.environ["PATH"], PYTHONPATH=str(TEMPLATE / "build" / "src"))
        command = [sys.executable, "-m", "skeleton", "doctor", "--json"]
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    hub_report = json.loads(done.stdout)["services"][2]
    assert (hub_report["outcome"], hub_report["source"], hub_report["last_four"]) == (
        "ok",
        "HF_TOKEN in .env",
        "wxyz",
    )
    assert HF_KEY not in done.stdout + done.stderr
