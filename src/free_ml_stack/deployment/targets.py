"""Targets of `deploy` besides the project's store: an Algorithmia installation, or a Hugging Face Space."""

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.console import say
from free_ml_stack.credentials import check as credentials
from free_ml_stack.deployment.versions import Bump
from free_ml_stack.errors import StackError
from free_ml_stack.storage.atomic import replace

if TYPE_CHECKING:
    from free_ml_stack.deployment.spaces import Hosted
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

RECORD = "space.json"
SAMPLES = 10


def to_installation(science: "Science", settings: "Settings", model_dir: Path, bump: Bump) -> str:
    """Publish a model at the installation of ALGORITHMIA_API; return the version. Raises StackError."""
    import Algorithmia
    from Algorithmia.errors import ApiError
    from requests import RequestException

    from free_ml_stack.deployment.installation import deploy_to_installation

    if not (settings.algorithmia_api and settings.algorithmia_api_key):
        raise StackError("no installation configured; set ALGORITHMIA_API and ALGORITHMIA_API_KEY")
    client = Algorithmia.client(settings.algorithmia_api_key, settings.algorithmia_api)
    sources, predict = settings.root / "algorithm", science.folder / "predict.py"
    try:
        return deploy_to_installation(model_dir, sources, predict, client, settings.algorithm, bump, say=say)
    except RequestException as error:
        raise StackError(f"no answer from {settings.algorithmia_api}: {error}") from None
    except Exception as error:
        if not isinstance(error, ApiError) and type(error) is not Exception:  # the client raises both
            raise
        reason = " ".join(str(getattr(error, "message", error)).split())
        raise StackError(
            f"request rejected by {settings.algorithmia_api}: {reason}; "
            f"check that the owner of ALGORITHMIA_API_KEY may change {settings.algorithm}"
        ) from None


def to_space(science: "Science", settings: "Settings", model_dir: Path, bump: Bump, kind: str) -> "Hosted":
    """Host a model on a Space of the account; write its URL and key to `.stack/space.json`.

    An existing key is kept. Raises StackError.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    from free_ml_stack.deployment.spaces import SpaceContent, host

    token = get_token()
    if not token:
        raise StackError("no token for Hugging Face; set HF_TOKEN to one with write access, or run `hf auth login`")
    account = settings.model_repo.partition("/")[0] or settings.huggingface_username
    if problem := credentials.key_problem("huggingface", account, settings.root / ".env"):
        raise StackError(problem)
    record = settings.private / RECORD
    project = SpaceContent(
        title=settings.title or settings.project,
        root=settings.root,
        package=science.folder,
        algorithm=settings.algorithm,
        collection=settings.project,
        cache=settings.private / "cache",
        samples=test_samples(science, settings, model_dir),
    )
    api = HfApi(token=token)
    try:
        space = settings.model_repo or f"{api.whoami()['name']}/{settings.project}"
        key = saved_key(record) or secrets.token_urlsafe(24)
        hosted = host(model_dir, project, science.predict, api, space, key, token, kind, bump, say)
    except HfHubHTTPError as error:
        raise StackError(f"request rejected by the Hub: {error.server_message or error}") from None
    except HTTPError as error:
        raise StackError(f"no answer from {api.endpoint}: {error}") from None
    if hosted.calls:
        record.parent.mkdir(parents=True, exist_ok=True)
        replace(record, json.dumps({"url": hosted.url, "key": key}).encode(), private=True)
    return hosted


def test_samples(science: "Science", settings: "Settings", model_dir: Path) -> list[object]:
    """Return example inputs from the test split if the model's data set is available, otherwise the model's sample."""
    from free_ml_stack.data import dataset
    from free_ml_stack.storage.stores import open_store

    record = model_dir / "result.json"
    trained_on = json.loads(record.read_bytes())["data"]["sha256"] if record.exists() else ""
    try:
        splits, facts = dataset.load(science, settings, open_store(settings.storage, settings))
    except StackError:
        splits, facts = {}, {}
    if not splits or (trained_on and dataset.fingerprint(facts) != trained_on):
        return [json.loads((model_dir / "sample.json").read_bytes())["input"]]
    return dataset.examples(science, splits["test"], range(min(SAMPLES, splits["test"].rows)))


def saved_key(record: Path) -> str:
    """Return the key of the existing Space, or ""."""
    return str(json.loads(record.read_text(encoding="utf-8"))["key"]) if record.exists() else ""
