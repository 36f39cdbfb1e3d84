"""Check of a project's environment: keys, package versions, device, disk space, and costs."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from free_ml_stack.console import say
from free_ml_stack.credentials import check as credentials
from free_ml_stack.errors import StackError, extra_needed
from free_ml_stack.notebook.packages import LIBRARY, vendored
from free_ml_stack.project.settings import Settings
from free_ml_stack.storage import s3
from free_ml_stack.storage import stores as storage

PACKAGES = (LIBRARY, "torch", "numpy", "pyarrow", "safetensors", "onnxruntime", "fsspec", "optuna")
CLIENTS = ("algorithmia", "wandb", "huggingface_hub", "s3fs", "trackio")
NEEDED = 1 << 30  # bytes, for a few models and their checkpoints
PRIVATE = {"free": 100e9, "PRO": 1e12}  # bytes; https://huggingface.co/docs/hub/storage-limits


@dataclass(frozen=True)
class Cost:
    """The cost of a part of the project with its current settings, and the page with the terms."""

    part: str
    free: bool
    text: str
    page: str = ""


def doctor(settings: Settings, as_json: bool = False) -> int:
    """Print the results as text or JSON; return 1 if there is a problem with anything that the project uses."""
    accounts = {service: getattr(settings, name) for service, name in credentials.SETTINGS.items()}
    accounts["huggingface"] = settings.model_repo.rpartition("/")[0] or accounts["huggingface"]
    dotenv = credentials.read_env_file(settings.root / ".env")
    reports = credentials.check(os.environ, accounts, dotenv)
    on_hub = next(report for report in reports if report.service == "huggingface")
    plan = on_hub.plan
    found: dict[str, Any] = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in (*PACKAGES, *CLIENTS)},
        "device": _device(),
        "disk_free": shutil.disk_usage(settings.root).free,
        "storage": settings.storage,
        "hub_storage": _used(on_hub, accounts["huggingface"], dotenv),
    }
    bills = costs(settings, plan)
    wrong = [
        f"{credentials.SERVICES[report.service]}: {report.text}"
        for report in reports
        if report.outcome == "rejected" and (report.service != "wandb" or settings.tracker == "wandb")
    ]
    wrong += _problems(settings, found)
    if as_json:
        services, prices = credentials.as_json(reports), [vars(bill) for bill in bills]
        print(json.dumps({**found, "services": services, "costs": prices, "wrong": wrong}, indent=2))
        return 1 if wrong else 0
    credentials.show(reports, sys.stdout, os.environ)
    _print(found, bills, wrong)
    return 1 if wrong else 0


def costs(settings: Settings, plan: str = "") -> list[Cost]:
    """Return the cost of each part of the project; `plan` is the account's plan at Hugging Face."""
    hub = "https://huggingface.co/pricing"
    scheme = settings.storage.partition("://")[0] if "://" in settings.storage else "file"
    stores = {
        "algorithmia": Cost("storage", True, "the project's gateway, or your installation"),
        "hf": Cost("storage", True, "free within the Hub's limits", "https://huggingface.co/docs/hub/storage-limits"),
        "s3": Cost(
            "storage",
            "s3" not in settings.credentials,
            "a bucket is billed by your provider",
            "https://aws.amazon.com/s3/pricing",
        ),
    }
    if s3.on_gateway():
        stores["s3"] = stores["hf"]
    spaces = "static and ZeroGPU Spaces are free; a Docker Space requires PRO"
    return [
        stores.get(scheme, Cost("storage", True, "a local folder")),
        Cost("tracking", True, "W&B's free plan, or offline", "https://wandb.ai/site/pricing")
        if settings.tracker == "wandb"
        else Cost("tracking", True, "local"),
        Cost("hosting", True, f"{spaces}{', which you have' if plan == 'PRO' else ''}", hub),
        Cost(
            "GPU",
            True,
            "Colab's free tier, subject to availability",
            "https://research.google.com/colaboratory/faq.html",
        ),
    ]


def _used(report: credentials.Report, namespace: str, dotenv: Mapping[str, str]) -> dict[str, Any]:
    """Return the private and public bytes of a namespace on the Hub and its private limit; {} without an answer.

    Source: huggingface_hub's list_user_repos.
    """
    if report.outcome != "ok":
        return {}
    from huggingface_hub import HfApi

    key = credentials.find("huggingface", os.environ, dotenv)
    own = namespace.casefold() in ("", report.account.casefold())
    try:
        repos = list(HfApi(endpoint=key.address, token=key.value).list_user_repos(None if own else namespace))
    except Exception:  # the report is optional
        return {}
    sizes = {kind: sum(repo.storage for repo in repos if repo.visibility == kind) for kind in ("private", "public")}
    return {"account": namespace or report.account, **sizes, "limit": PRIVATE.get(report.plan) if own else None}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> str:
    if not util.find_spec("torch"):
        return "torch is not installed"
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    return "mps" if torch.backends.mps.is_available() else f"cpu ({os.cpu_count()} cores)"


def _problems(settings: Settings, found: dict[str, Any]) -> list[str]:
    wrong = []
    versions = found["versions"]
    try:
        storage.parse(settings.storage)
    except StackError as error:
        wrong.append(str(error))
    wrong += _library_problems(settings.root, versions[LIBRARY])
    if settings.storage.startswith("s3://") and "s3" in settings.credentials:
        missing = f"storage {settings.storage}: {extra_needed('s3fs', 's3')}"
        wrong += s3.faults() if versions["s3fs"] else [missing]
    if settings.tracker == "trackio" and not versions["trackio"]:
        wrong.append(f"tracker: {extra_needed('trackio', 'trackio')}")
    if found["disk_free"] < NEEDED:
        wrong.append(f"only {found['disk_free'] / 1e9:.1f} GB of disk space left: free some space")
    return wrong


def _library_problems(root: Path, installed: str) -> list[str]:
    """Return problems with the library: a changed wheel, or another installed version."""
    if not (root / "pyproject.toml").is_file():
        return []
    try:
        wheel = vendored(root)
    except StackError as error:
        return [str(error)]
    there = wheel.name.split("-")[1] if wheel else installed
    return [] if there == installed else [f"{LIBRARY} {installed} is installed, but vendor/ has {there}: run `uv sync`"]


def _print(found: dict[str, Any], bills: list[Cost], wrong: list[str]) -> None:
    installed = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    facts = {"Python": found["python"], "Packages": installed, "Device": found["device"]}
    facts |= {"Disk": f"{found['disk_free'] / 1e9:.0f} GB free", "Storage": found["storage"]}
    if used := found["hub_storage"]:
        limit = f" of {used['limit'] / 1e9:,.0f}" if used["limit"] else ""
        private, public = f"{used['private'] / 1e9:,.2f}{limit} GB private", f"{used['public'] / 1e9:,.2f} GB public"
        facts["Hub"] = f"{private}, {public}, of {used['account']}"
    say("", *(f"{name}: {text}" for name, text in facts.items()), "", "Cost:")
    for bill in bills:
        page = f" ({bill.page})" if bill.page else ""
        say(f"  {bill.part}: {'free' if bill.free else 'paid'}, {bill.text}{page}")
    say("", *(f"problem: {line}" for line in wrong), *([] if wrong else ["No problems found."]))
