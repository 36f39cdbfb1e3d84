"""The loopback Hub's buckets and limits with the unmodified client."""

import os
from pathlib import Path

import hf_xet
import pytest
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import BucketBatchError, BucketNotFoundError, HfHubHTTPError
from services import hub_limits
from services.hub_server import Hub, serving

FILES = {"deep/big": os.urandom(1 << 18) + bytes(100_000), "a.txt": b"hello", "deep/empty": b""}


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi(endpoint=hub.url, token="hf_write")
    api.create_bucket("me/things", private=True)
    api.batch_bucket_files("me/things", add=[(content, path) for path, content in FILES.items()])
    return api


def test_uploaded_files_of_a_bucket_are_downloaded_unchanged(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    assert hub.buckets.content("me/things") == FILES
    info = api.bucket_info("me/things")
    assert (info.private, info.total_files, info.size) == (True, 3, sum(map(len, FILES.values())))
    assert [item.path for item in api.list_bucket_tree("me/things")] == ["a.txt", "deep"]
    api.download_bucket_files("me/things", [(path, tmp_path / path) for path in FILES])
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
    [found] = hf_xet.hash_files([str(tmp_path / "deep" / "big")])
    assert next(iter(api.get_bucket_paths_info("me/things", ["deep/big"]))).xet_hash == found.hash
    files = HfFileSystem(endpoint=hub.url, token="hf_write", skip_instance_cache=True)
    assert files.cat_file("buckets/me/things/deep/big") == FILES["deep/big"]
    assert {path.removeprefix("buckets/me/things/") for path in files.find("buckets/me/things")} == set(FILES)


def test_a_batch_reports_its_failures(hub: Hub, api: HfApi) -> None:
    with pytest.raises(BucketBatchError, match="nothing: not found"):
        api.batch_bucket_files("me/things", add=[(b"new", "new")], delete=["a.txt", "nothing"])
    assert set(hub.buckets.content("me/things")) == {"deep/big", "deep/empty", "new"}


def test_a_private_bucket_is_visible_to_its_owner_only(hub: Hub, api: HfApi) -> None:
    assert api.create_bucket("me/things", exist_ok=True).bucket_id == "me/things"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_bucket("me/things")
    other = HfApi(endpoint=hub.url, token="hf_other")
    with pytest.raises(BucketNotFoundError):
        other.bucket_info("me/things")
    with pytest.raises(HfHubHTTPError, match="403"):
        other.create_bucket("me/other")
    found = [(repo.type, repo.id, repo.storage) for repo in api.list_user_repos()]
    assert found == [("bucket", "me/things", sum(map(len, FILES.values())))]
    assert list(other.list_buckets(namespace="me")) == []


def test_commits_are_counted_over_an_hour(tmp_path: Path) -> None:
    hub, now = Hub(tmp_path / "hub"), 1e9
    hub.limits.clock = lambda: now
    hub.limits.hourly = 3
    with pytest.raises(AssertionError, match="commit to dataset me/data"), serving(hub):
        api = HfApi(endpoint=hub.url, token="hf_write")
        api.create_repo("me/data", repo_type="dataset")

        def commit() -> None:
            api.upload_file(path_or_fileobj=str(now).encode(), path_in_repo="x", repo_id="me/data", repo_type="dataset")

        for _ in range(3):
            now += 20
            commit()
        now += 20
        with pytest.raises(HfHubHTTPError, match="rate limit for repository commits .3 per hour.*in about 59 min"):
            commit()
        now += hub_limits.HOUR
        commit()


def test_requests_are_counted_over_five_minutes(tmp_path: Path) -> None:
    hub, now = Hub(tmp_path / "hub"), 1e9 + 250
    hub.limits.clock = lambda: now
    hub.limits.requests["api"] = 3
    with pytest.raises(AssertionError, match="whoami"), serving(hub):
        api = HfApi(endpoint=hub.url, token="hf_write")
        for _ in range(3):
            api.whoami()
        with pytest.raises(HfHubHTTPError, match="429") as refusal:
            api.whoami()
        assert refusal.value.response.headers["ratelimit"] == '"api";r=0;t=150'
        HfApi(endpoint=hub.url, token="hf_read").whoami()  # those of other accounts are counted separately
        now += 150
        api.whoami()
