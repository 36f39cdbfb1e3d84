"""Publishing: after any failure the Hub has the old or the new version completely."""

import subprocess
import sys
from pathlib import Path

import projects
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars
from services.hub_faults import Fault
from services.hub_server import Hub

from free_ml_stack.errors import StackError
from free_ml_stack.hub import publish as hubbing
from free_ml_stack.hub.publish import compare, upload
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.storage.repository import Repository

CARD = "---\nlicense: mit\npipeline_tag: image-classification\n---\n# A model\n"
PLACE = Repository("me/model")


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    monkeypatch.setattr("free_ml_stack.storage.retry.SCALE", 0.01)
    disable_progress_bars()
    return HfApi(endpoint=hub.url, token="hf_write")


def version(folder: Path, **files: bytes) -> Path:
    """Create a small model folder."""
    folder.mkdir()
    for name, content in {"README.md": CARD.encode(), "config.json": b"{}", **files}.items():
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return version(tmp_path / "old", **{"model.safetensors": b"\0old" * 500, "gone.png": b"\x89PNG\0"})


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return version(tmp_path / "new", **{"model.safetensors": b"\0new" * 500, "more.txt": b"more"})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def shown(hub: Hub, revision: str = "main", place: Repository = PLACE) -> dict[str, bytes]:
    """Return the files on the Hub, except those it created itself."""
    return {name: data for name, data in hub.files("model", place.id, revision).items() if name != ".gitattributes"}


def test_a_version_is_one_commit_and_a_tag(hub: Hub, api: HfApi, old: Path, new: Path) -> None:
    assert upload(api, PLACE, old, "first") == (f"{hub.url}/me/model", "v0.1.0")
    assert hub.repo("model", "me/model").private
    assert shown(hub) == content(old)
    assert upload(api, PLACE, new, "second")[1] == "v0.2.0"
    assert shown(hub) == content(new)
    assert shown(hub, "v0.1.0") == content(old)
    commits = hub.repo("model", "me/model").commits
    assert [commit.title for commit in commits] == ["initial commit", "first", "second"]
    assert set(commits[-1].changed) == {"model.safetensors", "more.txt", "gone.png", "manifest.json"}


def test_unchanged_files_are_not_uploaded_again(hub: Hub, api: HfApi, old: Path) -> None:
    first = upload(api, PLACE, old, "first")
    sent, calls = hub.sent, len(hub.calls)
    assert upload(api, PLACE, old, "again") == first
    assert hub.sent == sent
    assert not [call for call in hub.calls[calls:] if call.startswith("POST") and "create" not in call]


def test_files_of_others_are_kept(hub: Hub, api: HfApi, old: Path, new: Path) -> None:
    upload(api, PLACE, old, "first")
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id="me/model")
    upload(api, PLACE, new, "second")
    assert shown(hub) == {**content(new), "theirs.txt": b"theirs"}


def test_a_new_repository_is_private_by_default(hub: Hub, api: HfApi, old: Path) -> None:
    upload(api, PLACE, old, "first")
    assert hub.repo("model", "me/model").private
    upload(api, PLACE, old, "first", public=True)
    assert not hub.repo("model", "me/model").private
    upload(api, Repository("me/other"), old, "first", public=True)
    assert not hub.repo("model", "me/other").private


def test_the_preview_shows_the_changes(hub: Hub, api: HfApi, old: Path, new: Path) -> None:
    assert {change.sign for change in compare(api, PLACE, old)[1]} == {"+"}
    assert hub.repos == {}
    upload(api, PLACE, old, "first")
    signs = {change.name: change.sign for change in compare(api, PLACE, new)[1]}
    assert signs == {
        "README.md": "=",
        "config.json": "=",
        "gone.png": "-",
        "manifest.json": "~",
        "model.safetensors": "~",
        "more.txt": "+",
    }


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's, with LFS
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_after_an_error_at_any_call_the_version_is_old_or_new(
    hub: Hub, api: HfApi, tmp_path: Path, xet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls fail from the n-th on, for each n: a clear line, and the next attempt succeeds."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    messages, number, calls = [], 0, 99
    while number <= calls:
        old, new = (
            version(
                tmp_path / f"{name}-{number}",
                **{"model.safetensors": f"\0{name} {number}".encode() * 500, name: b"x"},
            )
            for name in ("old", "new")
        )
        place = Repository(f"me/model-{number}")
        upload(api, place, old, "first")
        before = len(hub.calls)
        hub.app.faults = [Fault(403, at=range(number, 10**6))] if number else []
        try:
            upload(api, place, new, "second")
        except StackError as error:
            messages.append(str(error))
        calls = calls if number else len(hub.calls) - before
        assert shown(hub, place=place) in (content(old), content(new))
        hub.app.faults = []
        assert upload(api, place, new, "second")[1] == "v0.2.0"
        assert shown(hub, "v0.2.0", place) == content(new)
        number += 1
    assert any("/xorbs/" in call for call in hub.calls) == xet
    assert any("/lfs/" in call for call in hub.calls) != xet
    assert calls >= 10
    assert calls - 3 <= len(messages) <= calls  # some calls of hf_xet are optional
    assert not [line for line in messages if "\n" in line]


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's, with LFS
@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (404, "try again later, or set HF_HUB_DISABLE_XET=1"),
        (501, "try again later, or set HF_HUB_DISABLE_XET=1"),
        (403, "see `doctor`"),
    ],
)
def test_a_failed_xet_token_is_reported_with_a_workaround(
    hub: Hub, api: HfApi, new: Path, monkeypatch: pytest.MonkeyPatch, status: int, remedy: str
) -> None:
    """Not "check the network", which works."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.app.faults = [Fault(status, match="xet-write-token", at=range(10**6))]
    with pytest.raises(StackError, match=f"error from the Hub's file storage: {status} .*; {remedy}"):
        upload(api, PLACE, new, "first")
    if status == 404:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        assert upload(api, PLACE, new, "first")[1] == "v0.1.0"


UPLOAD = """
import sys
from pathlib import Path
from free_ml_stack.storage.repository import Repository
from free_ml_stack.hub.client import client
from free_ml_stack.hub.publish import upload
upload(client(), Repository("me/model"), Path(sys.argv[1]), "second")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's, with LFS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("xet", "call"),
    [
        *((True, call) for call in ("/v1/xorbs/", "/v1/shards", "/commit/", "/tag/")),
        *((False, call) for call in ("PUT /lfs/", "/verify", "/commit/")),
    ],
)
def test_killed_during_an_upload_the_version_is_old_or_new(
    hub: Hub,
    api: HfApi,
    old: Path,
    new: Path,
    tmp_path: Path,
    xet: bool,
    call: str,
    after: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether or not the Hub completed the request; the next attempt succeeds."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    upload(api, PLACE, old, "first")
    fault = Fault("held", match=call, after=after)
    hub.app.faults = [fault]
    environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": str(not xet)}
    command = [sys.executable, "-c", UPLOAD, str(new)]
    with subprocess.Popen(command, env=projects.environment(tmp_path, **environ)) as process:
        assert fault.struck.wait(60)
        process.kill()
    assert shown(hub) in (content(old), content(new))
    hub.app.faults = []
    assert upload(api, PLACE, new, "second")[1] == "v0.2.0"
    assert shown(hub, "v0.2.0") == content(new)
    assert [commit.title for commit in hub.repo("model", "me/model").commits][1:] == ["first", "second"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", [429, 503, "reset"])
def test_a_transient_error_at_any_call_is_retried(
    hub: Hub, api: HfApi, old: Path, new: Path, kind: int | str, after: bool
) -> None:
    """Each call fails once, before or after the Hub completed it; there is exactly one version."""
    for match in ("repos/create", "/commit/", "/refs", "/tag/", "GET /api/models/me/model"):
        hub.repos.clear()
        hub.app.faults = []
        upload(api, PLACE, old, "first")
        hub.app.faults = [Fault(kind, at=[1], match=match, after=after)]
        assert upload(api, PLACE, new, "second")[1] == "v0.2.0"
        repo = hub.repo("model", "me/model")
        assert [commit.title for commit in repo.commits] == ["initial commit", "first", "second"]
        assert set(repo.tags) == {"v0.1.0", "v0.2.0"}
        assert shown(hub, "v0.2.0") == content(new)


def test_an_hourly_quota_is_reported_immediately(hub: Hub, api: HfApi, old: Path, new: Path) -> None:
    hub.limits.hourly = 1
    upload(api, PLACE, old, "first")
    with pytest.raises(
        StackError, match=r"error from the Hub \(429\): .*exceeded the rate limit for repository commits"
    ):
        upload(api, PLACE, new, "second")
    assert hub.limits.exceeded == ["commit to model me/model"]
    hub.limits.exceeded.clear()


def test_retries_of_the_client_are_not_repeated(
    hub: Hub, api: HfApi, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed listing has been retried for 23 seconds; a conflict is still retried."""
    upload(api, PLACE, old, "first")
    monkeypatch.setattr("free_ml_stack.hub.client.RETRY_SECONDS", 0.0)
    hub.app.faults = [Fault(503, match="GET /api/models/me/model")]
    with pytest.raises(StackError, match=r"error from the Hub \(503\): .*; try again later"):
        upload(api, PLACE, new, "second")
    assert hub.app.faults[0].seen == 1
    hub.app.faults = [Fault(412, at=[1], match="/commit/")]
    assert upload(api, PLACE, new, "second")[1] == "v0.2.0"


@pytest.mark.slow
def test_two_concurrent_processes_publish_two_versions(
    hub: Hub, api: HfApi, old: Path, new: Path, tmp_path: Path
) -> None:
    environ = projects.environment(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_write")
    both = [subprocess.Popen([sys.executable, "-c", UPLOAD, str(folder)], env=environ) for folder in (old, new)]
    assert [process.wait(100) for process in both] == [0, 0]
    versions = [shown(hub, version) for version in ("v0.1.0", "v0.2.0")]
    assert all(content(folder) in versions for folder in (old, new))
    assert shown(hub) == versions[1]


def test_concurrent_uploads_are_not_mixed(hub: Hub, api: HfApi, old: Path, new: Path) -> None:
    upload(api, PLACE, old, "first")
    head, _ = compare(api, PLACE, new)
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id="me/model")
    upload(api, PLACE, new, "second")
    assert head != hub.repo("model", "me/model").head.oid
    assert shown(hub) == {**content(new), "theirs.txt": b"theirs"}


def test_rejected_storage_is_reported_immediately_in_one_line(hub: Hub, api: HfApi, old: Path) -> None:
    hub.app.faults = [Fault(403, match="/v1/xorbs")]
    with pytest.raises(StackError, match="403 Forbidden") as refusal:
        upload(api, PLACE, old, "first")
    assert "\n" not in str(refusal.value)
    assert len([call for call in hub.calls if "/v1/xorbs" in call]) == 1
    assert shown(hub) == {}


@pytest.mark.parametrize(
    ("key", "words"), [("hf_read", "write access"), ("hf_unknown", "key rejected"), ("hf_other", "write access")]
)
def test_a_key_without_access_is_reported_in_one_line(hub: Hub, api: HfApi, old: Path, key: str, words: str) -> None:
    with pytest.raises(StackError, match=words) as refusal:
        upload(HfApi(endpoint=hub.url, token=key), PLACE, old, "first")
    assert "\n" not in str(refusal.value)
    assert key not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("html", "invalid response from the Hub"),
        (500, r"error from the Hub \(500\)"),
        (404, r"error from the Hub \(404\)"),
        ("reset", "cannot reach the Hub"),
    ],
)
def test_a_permanent_error_of_the_hub_is_reported_in_one_line(
    hub: Hub, api: HfApi, old: Path, kind: int | str, words: str
) -> None:
    hub.app.faults = [Fault(kind)]
    with pytest.raises(StackError, match=words) as refusal:
        upload(api, PLACE, old, "first")
    assert "\n" not in str(refusal.value)


def test_an_unreadable_card_on_the_hub_is_not_overwritten(
    hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubbing, "client", lambda: api)
    hub.put("model", "me/model", {"README.md": "## Limits\n\nCafé".encode("latin-1")})
    kept, trouble = hubbing.user_sections(PLACE)
    assert kept == {}
    assert trouble.startswith("README.md of me/model on the Hub: ")
    assert trouble.endswith("; save it as UTF-8 text")


def test_an_invalid_card_is_not_uploaded(hub: Hub, api: HfApi, old: Path) -> None:
    (old / "README.md").write_text("---\nlicense: [mit]\n---\n")
    write_manifest(old)
    with pytest.raises(StackError, match="license"):
        upload(api, PLACE, old, "first")
    assert hub.calls == []
