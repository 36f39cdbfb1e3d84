"""The official client creates, compiles, publishes and looks up algorithms."""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from Algorithmia.errors import AlgorithmException
from deployed import KEY, Deployed, deployed, open_app
from predictors import Echo, echo_folder
from serving import serving

from free_ml_stack.deployment.deploy import deploy, rollback
from free_ml_stack.errors import StackError

DETAILS = {"label": "Hello", "summary": "Returns a greeting", "tagline": "Hi"}
SETTINGS = {"license": "mit", "network_access": "isolated", "pipeline_enabled": False}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def created(gateway: Deployed, name: str) -> Any:
    algo = gateway.client().algo(f"me/{name}")
    algo.create(details=DETAILS, settings=SETTINGS, version_info={"sample_input": "x"})
    return algo


def test_the_deployed_algorithm_exists(gateway: Deployed) -> None:
    assert gateway.client().algo("me/demo").exists() is True
    assert gateway.client().algo("me/nothing").exists() is False
    assert gateway.client().algo("you/demo").exists() is False


def test_its_versions_are_listed(gateway: Deployed) -> None:
    algo = gateway.client().algo("me/demo")
    [version] = algo.versions()["results"]
    assert version["version_info"]["semantic_version"] == "0.1.0"
    assert version["build"]["status"] == "succeeded"
    assert version["resource_type"] == "algorithm"
    assert algo.info(version["version_info"]["git_hash"]) == version
    assert algo.info()["results"] == [version]
    assert re.fullmatch(r"[0-9a-f-]{36}", algo.get_algorithm_id())


def test_create_compile_call_publish(gateway: Deployed) -> None:
    """The steps of a new algorithm in the vendor's example."""
    algo = gateway.client().algo("me/hello")
    assert algo.create(details=DETAILS, settings=SETTINGS)["name"] == "hello"
    commit = algo.compile()["version_info"]["git_hash"]
    pinned = gateway.client().algo(f"me/hello/{commit}")
    assert pinned.pipe("John").result == "John"
    with pytest.raises(AlgorithmException, match="not found"):
        algo.pipe("not published yet")
    answer = pinned.publish(
        details={"label": "testing"},
        settings={"algorithm_callability": "private"},
        version_info={"version_type": "minor", "release_notes": "first", "sample_input": "John"},
    )
    assert answer["version_info"]["semantic_version"] == "0.1.0"
    assert answer["version_info"]["release_notes"] == "first"
    assert answer["details"]["label"] == "testing"
    assert algo.info(commit)["version_info"]["semantic_version"] == "0.1.0"
    assert gateway.client().algo("me/hello/0.1.0").pipe("x").result == "x"
    assert gateway.client().algo("me/hello/latestPrivate").pipe("x").result == "x"
    with pytest.raises(AlgorithmException, match="not found"):
        algo.pipe("there is no public version")


def test_a_repeated_request_has_no_further_effect(gateway: Deployed) -> None:
    algo = created(gateway, "twice")
    assert algo.compile() == algo.compile()
    assert algo.publish(version_info={"version_type": "major"}) == algo.publish(version_info={"version_type": "major"})
    assert [item["version_info"]["semantic_version"] for item in algo.versions()["results"]] == ["1.0.0"]
    assert len(algo.get_builds()["results"]) == 1


def test_publish_without_a_new_build_is_rejected(gateway: Deployed) -> None:
    created(gateway, "nothing_new")
    url = f"{gateway.url}/v1/algorithms/me/nothing_new/versions"
    answer = requests.post(url, json={}, headers={"Authorization": KEY}, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 1007


@pytest.mark.parametrize(
    ("kind", "version"), [("major", "2.0.0"), ("minor", "1.3.0"), ("revision", "1.2.1"), ("patch", "1.2.1")]
)
def test_the_next_version(gateway: Deployed, kind: str, version: str) -> None:
    algo = created(gateway, f"next_{kind}")
    for before in ("major", "minor", "minor"):
        algo.compile()
        algo.publish(version_info={"version_type": before})
    algo.compile()
    assert algo.publish(version_info={"version_type": kind})["version_info"]["semantic_version"] == version


def test_versions_are_paginated_and_filtered(gateway: Deployed) -> None:
    algo = created(gateway, "pages")
    for number in range(3):
        algo.compile()
        algo.publish(settings={"algorithm_callability": "private" if number == 1 else "public"})
    algo.compile()
    first = algo.versions(limit=2)
    assert [item["version_info"]["semantic_version"] for item in first["results"]] == ["0.3.0", "0.2.0"]
    second = algo.versions(limit=2, marker=first["marker"])
    assert [item["version_info"]["semantic_version"] for item in second["results"]] == ["0.1.0"]
    assert second["marker"] is None
    assert len(algo.versions(published=True)["results"]) == 3
    assert len(algo.versions(published="false")["results"]) == 1
    assert [item["version_info"]["semantic_version"] for item in algo.versions(callable="private")["results"]] == [
        "0.2.0"
    ]
    followed = requests.get(first["next_link"], headers={"Authorization": KEY}, timeout=10).json()
    assert followed == second


def test_builds_and_their_logs(gateway: Deployed) -> None:
    algo = created(gateway, "builds")
    commit = algo.compile()["version_info"]["git_hash"]
    [build] = algo.get_builds()["results"]
    assert (build["commit_sha"], build["status"]) == (commit, "succeeded")
    assert algo.get_build(build["build_id"]) == build
    assert algo.get_build_logs(build["build_id"])["logs"]
    with pytest.raises(AlgorithmException, match="No such build"):
        algo.get_build("1a392e2c-b09f-4bae-a616-56c0830ac8e5")


def test_compile_without_a_model_is_a_failed_build(tmp_path: Path) -> None:
    _, app = open_app(tmp_path)
    with serving(app) as url:
        algo = created(Deployed(url, app.models.store, app), "empty")
        answer = algo.compile()
        assert answer["compilation"] == {"successful": False, "output": "no deployed model"}
        assert algo.get_builds()["results"][0]["status"] == "failed"


def test_an_empty_update_of_the_client_succeeds(gateway: Deployed) -> None:
    algo = created(gateway, "updated")
    assert algo.update(details={"label": "lost"}, settings={"license": "apl"})["details"]["label"] == "Hello"
    url = f"{gateway.url}/v1/algorithms/me/updated"
    answer = requests.put(url, json={"details": {"label": "kept"}}, headers={"Authorization": KEY}, timeout=10)
    assert answer.json()["details"] == DETAILS | {"label": "kept"}
    assert algo.info()["results"] == []


def test_an_algorithm_can_be_deleted_and_created_again(gateway: Deployed) -> None:
    url, headers = f"{gateway.url}/v1/algorithms/me", {"Authorization": KEY}
    for address in ("gone", created(gateway, "byid").get_algorithm_id()):
        algo = created(gateway, "gone") if address == "gone" else gateway.client().algo("me/byid")
        algo.compile()
        algo.publish(version_info={"version_type": "major"})
        assert algo.pipe("x").result == "x"
        path = f"{url}/{address}" if address == "gone" else f"{gateway.url}/v1/algorithms/{address}"
        answer = requests.delete(path, headers=headers, timeout=10)
        assert (answer.status_code, answer.reason, answer.content) == (204, "No Content", b"")
        assert requests.delete(path, headers=headers, timeout=10).status_code == 404
        assert algo.exists() is False
        with pytest.raises(AlgorithmException, match="not found"):
            algo.pipe("x")
    algo = created(gateway, "gone")
    assert algo.versions()["results"] == []
    algo.compile()
    assert algo.publish()["version_info"]["semantic_version"] == "0.1.0"
    assert algo.pipe("again").result == "again"
    assert gateway.client().algo("me/demo").pipe("word").result == "hello"  # its model folder was shared


def test_the_models_of_a_deleted_algorithm_are_removed(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        algo = created(gateway, "heir")
        algo.compile()
        headers = {"Authorization": KEY}
        assert requests.delete(f"{gateway.url}/v1/algorithms/me/demo", headers=headers, timeout=10).ok
        assert gateway.store.glob("deployments/demo/0.1.0-*")  # used by a build of another algorithm
        assert requests.delete(f"{gateway.url}/v1/algorithms/me/heir", headers=headers, timeout=10).ok
        build = deploy(echo_folder(tmp_path / "new", "new"), gateway.store, "demo", Echo())
        assert gateway.client().algo("me/demo").pipe("word").result == "new"
        assert requests.delete(f"{gateway.url}/v1/algorithms/me/demo", headers=headers, timeout=10).ok
        assert not gateway.store.exists(build.folder)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "demo"}, 409, 1002),
        ({"name": "../demo"}, 400, 6001),
        ({"name": 7}, 400, 6001),
        ({}, 400, 6001),
        ({"name": "x", "details": "text"}, 400, 6001),
        ([], 400, 2013),
        ({"name": "odd", "settings": {"algorithm_callability": "bogus"}}, 400, 6001),
    ],
)
def test_create_rejects(gateway: Deployed, body: Any, status: int, code: int) -> None:
    url = f"{gateway.url}/v1/algorithms/me"
    answer = requests.post(url, json=body, headers={"Authorization": KEY}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_catalogues(gateway: Deployed) -> None:
    client = gateway.client()
    assert [scm["id"] for scm in client.scms()["results"]] == ["internal"]
    assert "python3" in [language["name"] for language in client.get_supported_languages()]
    assert client.get_environment("python3")["environments"][0]["machine_type"] == "CPU"
    assert client.get_environment("cobol")["environments"] == []
    assert client.algo("me/demo").get_scm_status() == {"scm_connection_status": "active"}
    assert client.algo("me/demo").get_secrets()["secrets"] == []
    assert client.get_org_types()[0]["name"] == "basic"
    assert client.get_algorithm_errors(client.algo("me/demo").get_algorithm_id()) == []
    assert client.get_user_errors("me") == client.get_organization_errors("acme") == []


def test_the_template_of_a_new_algorithm(gateway: Deployed, tmp_path: Path) -> None:
    client = gateway.client()
    [environment] = client.get_environment("python3")["environments"]
    assert client.get_template(environment["environment_specification_id"], str(tmp_path)).ok
    assert "ADK(apply)" in (tmp_path / "src" / "__ALGO__.py").read_text()


def test_unsupported_resources_are_rejected_in_one_line(gateway: Deployed) -> None:
    client = gateway.client()
    assert "organisations" in client.get_org("acme")["error"]["message"]
    with pytest.raises(AlgorithmException, match="No such algorithm"):
        client.get_algorithm_errors("hello")
    for refused in (
        lambda: client.create_user({"username": "x", "email": "x@example.org"}),
        lambda: client.create_org({"org_name": "acme", "type_id": "basic"}),
        lambda: client.edit_org("acme", {"type_id": "basic"}),
    ):
        with pytest.raises(Exception, match=r"Response .40[0-9]."):
            refused()


def test_a_secret_is_refused_before_the_client_prints_it(gateway: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AlgorithmException, match="this gateway stores no secrets; set environment variables"):
        gateway.client().algo("me/demo").set_secret("short", "key", "value of a secret")
    assert "value of a secret" not in capsys.readouterr().out


def test_the_vendors_generated_client_reads_the_same_algorithm(gateway: Deployed) -> None:
    algorithm = gateway.client().manageApi.get_algorithm("me", "demo")
    assert algorithm.name == "demo"


def test_a_refresh_returns_after_the_version_that_another_loads(tmp_path: Path) -> None:
    """The periodic refresh may have read the index that a request has changed, and still load its version."""
    store, app = open_app(tmp_path / "data")
    models = app.models

    async def refresh_while_loading() -> None:
        deploy(echo_folder(tmp_path / "one", "one"), store, "demo", Echo())
        assert (await models.get("demo", "")).build.version == "0.1.0"
        deploy(echo_folder(tmp_path / "two", "two"), store, "demo", Echo())
        periodic = asyncio.ensure_future(models.refresh("demo"))
        while models.algorithms["demo"].latest().version != "0.2.0":
            await asyncio.sleep(0)
        assert models.find("demo", "").build.version == "0.1.0"
        await models.refresh("demo")
        assert models.find("demo", "").build.version == "0.2.0"
        await periodic
        await models.close()

    asyncio.run(refresh_while_loading())


def test_a_rollback_while_a_version_is_loading_is_obeyed(tmp_path: Path) -> None:
    store, app = open_app(tmp_path / "data")
    models = app.models

    async def roll_back_while_loading() -> None:
        for word in ("one", "two"):
            deploy(echo_folder(tmp_path / word, word), store, "demo", Echo())
        await models.get("demo", "0.1.0")
        loading = asyncio.ensure_future(models.get("demo", ""))
        while len(models.loading) < 2:
            await asyncio.sleep(0)
        rollback(store, "demo")
        await models.refresh("demo")
        assert (await loading).build.version == "0.1.0"
        assert models.find("demo", "").build.version == "0.1.0"
        await models.close()

    asyncio.run(roll_back_while_loading())


def test_a_version_that_could_not_be_loaded_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But not at each poll, as a load takes memory and time; the failure is reported once."""
    store, app = open_app(tmp_path / "data")
    models = app.models

    async def load_again() -> None:
        deploy(echo_folder(tmp_path / "one", "one"), store, "demo", Echo())
        await models.get("demo", "")
        build = deploy(echo_folder(tmp_path / "two", "two"), store, "demo", Echo())
        folder = tmp_path / "data" / "me" / "project" / build.folder
        away = folder.rename(tmp_path / "away")
        with pytest.raises(StackError, match=r"cannot download deployments/demo/0.2.0"):
            await models.refresh("demo")
        await models.refresh_all()  # not yet
        for _ in range(2):
            models.retries["demo"] = 0.0  # RETRY_SECONDS have passed
            await models.refresh_all()  # fails
            await models.refresh_all()  # not yet
        [report] = caplog.messages
        assert report.startswith(
            "demo: cannot update, keeping the loaded versions: cannot download deployments/demo/0."
        )
        away.rename(folder)
        await models.refresh("demo")
        assert models.find("demo", "").build.version == "0.1.0"
        models.retries["demo"] = 0.0
        await models.refresh("demo")
        assert models.find("demo", "").build.version == "0.2.0"
        await models.close()

    asyncio.run(load_again())


def test_a_model_that_cannot_be_copied_is_an_error_of_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, app = open_app(tmp_path / "data")
    deploy(echo_folder(tmp_path / "one", "one"), store, "demo", Echo())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StackError, match=r"cannot load deployments/demo/0.1.0\S*: .*: No such file or directory"):
        asyncio.run(app.models.get("demo", ""))
