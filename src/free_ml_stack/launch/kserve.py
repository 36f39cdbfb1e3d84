"""KServe with Triton: a published model as a model repository in the store, and the InferenceService that serves it.

Source: Triton's model repository and model configuration (docs.nvidia.com/deeplearning/triton-inference-server), and
KServe's storage and its runtime for Triton (kserve.github.io).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.deployment.tensors import ONNX, TensorModel
from free_ml_stack.errors import StackError
from free_ml_stack.launch.job import as_yaml, slug
from free_ml_stack.storage import stores
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.changes import change
from free_ml_stack.storage.manifest import verify

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

FOLDER, CONFIG = "triton", "config.pbtxt"
SCHEMES = ("s3://", "gs://", "hdfs://", "https://", "pvc://")  # from which KServe fetches a folder
BATCH = 64  # rows that Triton runs together at most
RUNTIME = "kserve-tritonserver"


def write(settings: "Settings", model: Path, uri: str = "", gpus: int = 0, account: str = "") -> tuple[Path, str]:
    """Write a published model as a model repository to the store, and its InferenceService beside the model folder.

    `uri` replaces the repository's URL in the store, `account` is a service account with the keys of the store.
    Returns the path of the InferenceService and the place of the model repository. Raises StackError for a store that
    KServe cannot read, unless `uri` names a copy.
    """
    verify(model)
    uri = uri or _store_uri(settings, model.name)
    if not uri.startswith(SCHEMES):
        raise StackError(f"--uri: expected a URL with {', '.join(SCHEMES)}, got {uri}")
    name = settings.algorithm.rpartition("/")[2]
    try:
        config = triton_config(name, TensorModel(model))
    except ValueError as error:
        raise StackError(f"{model.name}: {error}") from None
    target = f"{FOLDER}/{model.name}"
    files: dict[str, Path | bytes] = {f"{target}/{name}/1/{ONNX}": model / ONNX}
    store = stores.open_store(settings.storage, settings)
    change(store, {**files, f"{target}/{name}/{CONFIG}": config.encode()})
    path = model.with_name(f"{model.name}.kserve.yaml")
    replace(path, as_yaml(inference_service(settings.project, uri, gpus, account)).encode())
    return path, stores.place(settings.storage, target, settings)


def triton_config(name: str, model: TensorModel) -> str:
    """Return the model configuration of a graph. Raises ValueError if the model has no graph.

    Triton batches requests if the first dimension of all tensors is the same dynamic one. Tensors of one dimension
    are not batched: Triton would change their shape.
    """
    described = model.metadata
    nodes = (*model.session.get_inputs(), *model.session.get_outputs())
    named = {tensor["name"] for kind in described.values() for tensor in kind}
    first = {node.shape[0] if len(node.shape) > 1 else None for node in nodes if node.name in named}
    batched = len(first) == 1 and isinstance(next(iter(first)), str)
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {BATCH if batched else 0}",
    ]
    for kind, tensors in (("input", described["inputs"]), ("output", described["outputs"])):
        lines += [_tensor(kind, tensor, batched) for tensor in tensors]
    return "\n".join([*lines, *(["dynamic_batching { }"] if batched else [])]) + "\n"


def inference_service(project: str, uri: str, gpus: int, account: str) -> dict[str, Any]:
    """Return the InferenceService that serves a model repository at a URL."""
    model: dict[str, Any] = {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": RUNTIME,
        "storageUri": uri,
    }
    if gpus:
        model["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    predictor = {"model": model, **({"serviceAccountName": account} if account else {})}
    name = slug(project)[:50].rstrip("-")  # with endings of KServe, 63 at most
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name if name[0].isalpha() else f"model-{name}"},
        "spec": {"predictor": predictor},
    }


def _store_uri(settings: "Settings", model: str) -> str:
    """Return the URL of the model repository in the store. Raises StackError if KServe cannot read the store."""
    service, _ = stores.parse(settings.storage)
    if service != "s3" or not stores.connected(service, settings):
        raise StackError(
            f"storage: expected a bucket that KServe reads, s3://BUCKET with a key, got {settings.storage}; "
            f"add --uri with the URL of a copy of the store's {FOLDER}/{model}"
        )
    return f"{settings.storage.rstrip('/')}/{FOLDER}/{model}"


def _tensor(kind: str, tensor: Mapping[str, Any], batched: bool) -> str:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    dims = ", ".join(map(str, tensor["shape"][batched:]))
    return f"{kind} {{\n  name: {_quoted(tensor['name'])}\n  data_type: TYPE_{datatype}\n  dims: [ {dims} ]\n}}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
