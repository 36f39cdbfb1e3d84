"""The loopback Hub with the unmodified client: downloads equal uploads."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, HfFileSystem, ModelCard
from huggingface_hub._oidc import exchange_oidc_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from services.hub_faults import Fault
from services.hub_server import Hub, Token

FILES = {
    "a.txt": b"hello",
    "deep/er/b.txt": "ä".encode(),
    "README.md": b"---\nlicense: mit\n---\n# Hi\n",
    "empty": b"",
}


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi(endpoint=hub.url, token="hf_write")
    api.create_repo("me/model", private=True)
    return api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of text, numbers, zeros and repetitions, for the three compressions of chunks."""
    made = tmp_path / "folder"
    weights = np.random.default_rng(0).standard_normal(300_000).astype(np.float32).tobytes()
    contents = {
        **FILES,
        "model.safetensors": weights + bytes(100_000) + b"abc" * 50_000,
        "picture.png": b"\x89PNG\0" * 9,
    }
    for name, content in contents.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return made


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_key_has_a_user_and_permissions(hub: Hub) -> None:
    def token(key: str) -> dict:
        return HfApi(endpoint=hub.url, token=key).whoami()["auth"]["accessToken"]

    assert (token("hf_write")["role"], token("hf_read")["role"]) == ("write", "read")
    assert token("hf_fine")["fineGrained"]["scoped"][0]["permissions"] == ["repo.content.read", "repo.write"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        token("hf_unknown")


@pytest.mark.parametrize("key", ["hf_read", "hf_other"])
def test_writes_without_permission_are_rejected(hub: Hub, api: HfApi, key: str) -> None:
    other = HfApi(endpoint=hub.url, token=key)
    with pytest.raises(HfHubHTTPError, match="403"):
        other.create_repo("me/new")
    with pytest.raises(HfHubHTTPError):  # the first has no write access, for the second the repository is not visible
        other.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model")
    api.auth_check("me/model", write=True)
    with pytest.raises(HfHubHTTPError):
        other.auth_check("me/model", write=True)
    assert set(hub.files("model", "me/model")) == {".gitattributes"}


def test_a_scope_can_be_one_repository(hub: Hub, api: HfApi) -> None:
    hub.tokens["hf_narrow"] = Token(role="fineGrained", scopes=(("model", "me/model", ("repo.content.write",)),))
    narrow = HfApi(endpoint=hub.url, token="hf_narrow")
    narrow.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        narrow.create_repo("me/new")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_by_default_the_client_uploads_with_xet(hub: Hub, api: HfApi, folder: Path, kind: str) -> None:
    api.create_repo("me/model", repo_type=kind, exist_ok=True)
    api.upload_folder(repo_id="me/model", repo_type=kind, folder_path=folder)
    stored = hub.files(kind, "me/model")
    del stored[".gitattributes"]
    assert stored == content(folder)
    assert [call for call in hub.calls if "/xorbs/" in call]
    assert not [call for call in hub.calls if "/lfs/" in call]
    sent, commits = hub.sent, len(hub.repo(kind, "me/model").commits)
    api.upload_folder(repo_id="me/model", repo_type=kind, folder_path=folder)
    assert (hub.sent, len(hub.repo(kind, "me/model").commits)) == (sent, commits)


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().upload_folder(repo_id="me/model", folder_path=sys.argv[1])
"""


def test_without_xet_it_uploads_large_files_with_lfs(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_write",
        "HF_HOME": str(tmp_path / "home"),
    }
    environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for _ in range(2):  # the second upload sends nothing
        subprocess.run([sys.executable, "-c", UPLOAD, folder], env=environ, check=True, capture_output=True)
    stored = hub.files("model", "me/model")
    del stored[".gitattributes"]
    assert stored == content(folder)
    assert len([call for call in hub.calls if call.startswith("PUT /lfs/")]) == 2
    assert not [call for call in hub.calls if "/xorbs/" in call]
    assert len(hub.repo("model", "me/model").commits) == 2


def test_uploads_are_downloaded_unchanged(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.upload_folder(repo_id="me/model", folder_path=folder)
    copy = Path(api.snapshot_download("me/model", local_dir=tmp_path / "copy", cache_dir=tmp_path / "cache"))
    for name, expected in content(folder).items():
        assert (copy / name).read_bytes() == expected
    one = api.hf_hub_download("me/model", "deep/er/b.txt", cache_dir=tmp_path / "cache")
    assert Path(one).read_text() == "ä"
    [head] = {commit.oid for commit in hub.repo("model", "me/model").history("main")} & set(Path(one).parts)
    calls = len(hub.calls)
    api.hf_hub_download("me/model", "deep/er/b.txt", revision=head, cache_dir=tmp_path / "cache")
    assert len(hub.calls) == calls  # a cached file of a commit is not requested


def test_a_part_of_a_file_is_a_range_request(hub: Hub, api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id="me/model", folder_path=folder)
    files = HfFileSystem(endpoint=hub.url, token="hf_write", skip_instance_cache=True)
    expected = (folder / "model.safetensors").read_bytes()
    with files.open("me/model/model.safetensors", block_size=4096) as file:
        file.seek(70_000)
        assert file.read(100) == expected[70_000:70_100]
    names = {path.removeprefix("me/model/") for path in files.ls("me/model", detail=False)}
    assert names == {
        ".gitattributes",
        "README.md",
        "a.txt",
        "deep",
        "empty",
        "model.safetensors",
        "picture.png",
    }
    assert files.info("me/model/deep")["type"] == "directory"
    assert files.find("me/model/deep") == ["me/model/deep/er/b.txt"]
    assert files.cat_file("me/model/a.txt") == b"hello"


def test_listings_of_repositories(hub: Hub, api: HfApi, folder: Path) -> None:
    first = api.upload_folder(repo_id="me/model", folder_path=folder)
    info = api.model_info("me/model", files_metadata=True)
    assert (info.sha, info.private, info.card_data and info.card_data["license"]) == (first.oid, True, "mit")
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    assert {name: sizes[name] for name in content(folder)} == {
        name: len(data) for name, data in content(folder).items()
    }
    api.create_tag("me/model", tag="v1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("me/model", tag="v1")
    second = api.delete_file("a.txt", "me/model")
    assert [commit.commit_id for commit in api.list_repo_commits("me/model")][:2] == [second.oid, first.oid]
    [tag] = api.list_repo_refs("me/model").tags
    assert (tag.name, tag.target_commit) == ("v1", first.oid)
    assert "a.txt" in api.list_repo_files("me/model", revision="v1")
    assert "a.txt" not in api.list_repo_files("me/model")
    assert api.file_exists("me/model", "README.md")
    api.create_branch("me/model", branch="try")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model", revision="try")
    assert not api.file_exists("me/model", "x")
    assert api.file_exists("me/model", "x", revision="try")


def test_a_long_listing_is_paginated(hub: Hub, api: HfApi) -> None:
    hub.put("model", "me/long", {f"some & more/{number:04}.txt": b"x" for number in range(2100)})
    paths = [item.path for item in api.list_repo_tree("me/long", recursive=True)]
    assert len(set(paths)) == len(paths) == 2100 + 2  # the folder, .gitattributes
    assert len([call for call in hub.calls if "/tree/" in call]) == 3
    expanded = api.list_repo_tree("me/long", "some & more", expand=True)
    assert len(list(expanded)) == 2100
    assert len([call for call in hub.calls if "/tree/" in call]) == 3 + 2100 / 50
    files = HfFileSystem(endpoint=hub.url, token="hf_write", skip_instance_cache=True)
    assert len(files.find("me/long/some & more")) == 2100
    page = get_session().get(f"{hub.url}/api/models/me/long/tree/main", params={"limit": "1"})
    assert (len(page.json()), 'rel="next"' in page.headers["link"]) == (1, True)


def test_each_missing_resource_has_its_error(hub: Hub, api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/model", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("me/model", "nothing.txt")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("me/model")  # private


def test_a_branch_may_have_a_slash_in_its_name(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    api.create_branch("me/model", branch="refs/pr/1")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="in/x", repo_id="me/model", revision="refs/pr/1")
    assert api.model_info("me/model", revision="refs/pr/1").sha != api.model_info("me/model").sha
    assert "in/x" in api.list_repo_files("me/model", revision="refs/pr/1")
    path = api.hf_hub_download("me/model", "in/x", revision="refs/pr/1", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == b"x"


def test_a_commit_on_an_old_parent_is_rejected(hub: Hub, api: HfApi) -> None:
    old = hub.repo("model", "me/model").head.oid
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="me/model", parent_commit=old)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="b", repo_id="me/model", parent_commit=old)


def test_a_card_is_validated_before_the_upload(hub: Hub, api: HfApi) -> None:
    for front in (
        "license: 5",
        "tags: x",
        "license: [",
        "model_name: Digits ---\nlicense: 5",
        "model-index:\n- name: x\n  results:\n  - metrics: [{type: f1}]",
    ):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.upload_file(
                path_or_fileobj=f"---\n{front}\n---\n".encode(), path_in_repo="README.md", repo_id="me/model"
            )
    assert len(hub.repo("model", "me/model").commits) == 1
    front = "---\r\nmodel_name: Digits ---\r\nlicense: mit\r\n---\r\n"
    api.upload_file(path_or_fileobj=front.encode(), path_in_repo="README.md", repo_id="me/model")
    data = api.model_info("me/model").card_data
    assert data
    assert (data["license"], data["model_name"]) == ("mit", "Digits ---")
    assert ModelCard("---\nlicense: mit\n---\n").data.license == "mit"


def test_a_paid_space_is_rejected_and_a_free_one_stores_secrets(hub: Hub, api: HfApi) -> None:
    for sdk in ("docker", "gradio"):
        with pytest.raises(HfHubHTTPError, match="402.*PRO subscription|PRO subscription") as refusal:
            api.create_repo("me/space", repo_type="space", space_sdk=sdk)
        assert refusal.value.response.status_code == 402
    hub.grants = frozenset({"static", "zero-a10g"})
    api.create_repo("me/space", repo_type="space", space_sdk="gradio", space_hardware="zero-a10g")
    api.add_space_secret("me/space", "KEY", "secret")
    api.add_space_variable("me/space", "NAME", "value")
    assert {name: item.value for name, item in api.get_space_variables("me/space").items()} == {"NAME": "value"}
    assert hub.repo("space", "me/space").secrets == {"KEY": "secret"}
    assert api.get_space_runtime("me/space").stage == "NO_APP_FILE"
    api.upload_file(path_or_fileobj=b"1", path_in_repo="app.py", repo_id="me/space", repo_type="space")
    runtime = api.get_space_runtime("me/space")
    assert (runtime.stage, runtime.hardware) == ("RUNNING", "zero-a10g")
    with pytest.raises(HfHubHTTPError, match="402|PRO"):
        api.request_space_hardware("me/space", "t4-small")


def test_a_trusted_publisher_gets_a_token_for_one_repository(hub: Hub, api: HfApi) -> None:
    hub.publishers["identity"] = "me/model"
    given = exchange_oidc_token(subject_token="identity", resource="me/model", endpoint=hub.url)
    publisher = HfApi(endpoint=hub.url, token=given["access_token"])
    publisher.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model")
    with pytest.raises(HfHubHTTPError):
        exchange_oidc_token(subject_token="identity", resource="me/other", endpoint=hub.url)


@pytest.mark.parametrize("kind", [401, 403, 500, "reset", "html"])
def test_faults_are_injected(hub: Hub, api: HfApi, kind: int | str) -> None:
    hub.app.faults = [Fault(kind, at=[2], match="/refs")]
    api.list_repo_refs("me/model")
    with pytest.raises(Exception) as failure:
        api.list_repo_refs("me/model")
    assert str(kind) in str(failure.value) or kind in ("reset", "html")
    api.list_repo_refs("me/model")


def test_the_client_waits_at_a_rate_limit(hub: Hub, api: HfApi) -> None:
    hub.app.faults = [Fault(429, at=[1], match="/tree/")]
    assert [file.path for file in api.list_repo_tree("me/model")] == [".gitattributes"]
    assert len([call for call in hub.calls if "/tree/" in call]) == 2


def test_a_response_can_be_lost_or_late(hub: Hub, api: HfApi) -> None:
    hub.app.faults = [Fault("reset", match="/tag/", after=True)]
    with pytest.raises(Exception, match=r".*") as failure:
        api.create_tag("me/model", tag="v1")
    assert not isinstance(failure.value, HfHubHTTPError)
    assert "v1" in hub.repo("model", "me/model").tags
    hub.app.faults = [Fault("slow", seconds=0.3)]
    started = time.monotonic()
    api.list_repo_refs("me/model")
    assert time.monotonic() - started >= 0.3


def test_it_can_be_run_as_a_program() -> None:
    server = Path(__file__).with_name("hub_server.py")
    with subprocess.Popen([sys.executable, server], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        request = urllib.request.Request(f"{url}/api/whoami-v2", headers={"Authorization": "Bearer hf_write"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        process.terminate()
