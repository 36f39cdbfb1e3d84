"""Programs of the real clients of the Open Inference Protocol, for the Pythons in build/engines.

`python inference_clients.py CLIENT` reads {"url", "key", "model", "version", "images"} from standard input and prints the
answers as JSON. The address is all that differs between servers.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np


def triton(task: dict[str, Any]) -> dict[str, Any]:
    """Infer with tritonclient, which sends and receives binary tensors by default."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    model, headers = task["model"], {"Authorization": task["key"]}
    images = np.array(task["images"], np.float32)
    client = InferenceServerClient(task["url"].removeprefix("http://"))

    def infer(binary: bool, named: bool = True, version: str = "", images: Any = images, **options: Any) -> Any:
        given = InferInput("image", list(images.shape), "FP32")
        given.set_data_from_numpy(images, binary_data=binary)
        outputs = [InferRequestedOutput("probabilities", binary_data=binary)] if named else None
        options = {"headers": dict(headers), "model_name": model} | options  # the client adds to the headers
        return client.infer(inputs=[given], outputs=outputs, model_version=version, **options)

    metadata = client.get_model_metadata(model, headers=headers)
    found = {
        "live": client.is_server_live(headers=headers),
        "ready": client.is_server_ready(headers=headers),
        "model ready": client.is_model_ready(model, headers=headers),
        "inputs": [[one["name"], one["datatype"], one["shape"]] for one in metadata["inputs"]],
        "outputs": [[one["name"], one["datatype"], one["shape"]] for one in metadata["outputs"]],
        "json": infer(False).as_numpy("probabilities").tolist(),
    }
    if not task["binary"]:
        return found
    answer = infer(True, version=task["version"], request_id="7").get_response()
    return found | {
        "extensions": client.get_server_metadata(headers=headers)["extensions"],
        "version ready": client.is_model_ready(model, task["version"], headers=headers),
        "binary": infer(True).as_numpy("probabilities").tolist(),
        "default": infer(True, named=False).as_numpy("probabilities").tolist(),
        "mixed": infer(True, parameters={"note": "an unknown parameter"}).as_numpy("probabilities").tolist(),
        "gzip": infer(True, request_compression_algorithm="gzip").as_numpy("probabilities").tolist(),
        "deflate": infer(False, response_compression_algorithm="deflate", request_compression_algorithm="deflate")
        .as_numpy("probabilities")
        .tolist(),
        "answer": [answer["model_name"], answer["model_version"], answer["id"]],
        "errors": {
            "shape": _error(lambda: infer(True, images=images[:, :3])),
            "model": _error(lambda: infer(True, model_name="none")),
            "version": _error(lambda: infer(True, version="9.9.9")),
            "key": _error(lambda: infer(True, headers={"Authorization": "wrong"})),
            "no key": _error(lambda: infer(True, headers={})),
        },
        "other ready": client.is_model_ready("none", headers=headers),
    }


def kserve(task: dict[str, Any]) -> dict[str, Any]:
    """Infer with the client of kserve."""
    return asyncio.run(_kserve(task))


async def _kserve(task: dict[str, Any]) -> dict[str, Any]:
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    model, url, headers = task["model"], task["url"], {"Authorization": task["key"]}
    images = np.array(task["images"], np.float32)
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def infer(binary: bool, images: Any = images, **options: Any) -> Any:
        given = InferInput("image", list(images.shape), "FP32")
        given.set_data_from_numpy(images, binary_data=binary)
        outputs = [RequestedOutput("probabilities", {"binary_data": binary})]
        request = InferRequest(model, [given], "7", request_outputs=outputs if binary else None)
        options = {"headers": dict(headers), "model_name": model} | options
        return await client.infer(url, request, **options)

    async def error(**options: Any) -> str:
        try:
            await infer(True, **options)
        except Exception as found:
            return f"{type(found).__name__}: {found}"
        return "no error"

    found = {
        "model ready": await client.is_model_ready(url, model, headers=headers),
        "json": (await infer(False)).outputs[0].as_numpy().tolist(),
    }
    if not task["binary"]:
        return found
    answer = await infer(True)
    found |= {
        "live": await client.is_server_live(url, headers=headers),
        "ready": await client.is_server_ready(url, headers=headers),
        "other ready": await client.is_model_ready(url, "none", headers=headers),
        "binary": answer.outputs[0].as_numpy().tolist(),
        "answer": [answer.model_name, answer.id],
        "errors": {
            "shape": await error(images=images[:, :3]),
            "model": await error(model_name="none"),
            "key": await error(headers={"Authorization": "wrong"}),
            "no key": await error(headers={}),
        },
    }
    await client.close()
    return found


def _error(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    print(json.dumps({"triton": triton, "kserve": kserve}[sys.argv[1]](json.load(sys.stdin))))
