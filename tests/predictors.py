"""Predictors with the interface of a project's `predict.py`, and their model folders."""

import ctypes
import json
import os
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from waiting import until

from free_ml_stack.storage.manifest import write_manifest


class Echo:
    """Returns its input, except for a few inputs with special effects."""

    def load(self, model_dir: Path) -> str:
        return (model_dir / "word.txt").read_text()

    def apply(self, payload: Any, model: str) -> Any:
        match payload:
            case "word":
                return model
            case "refuse":
                raise ValueError("that makes no sense")
            case "fail":
                return {}["secret"]
            case "exit":
                raise SystemExit(3)
            case "object":
                return object()
            case {"sleep": seconds, **rest}:
                Path(rest.get("begun", os.devnull)).write_text("now")
                time.sleep(seconds)
                until(Path(rest.get("end", os.devnull)).exists)
            case {"print": text}:
                print(text)
        return payload


def echo_folder(folder: Path, word: str = "hello") -> Path:
    """A model folder of Echo; its model is a word."""
    folder.mkdir(parents=True)
    (folder / "word.txt").write_text(word)
    (folder / "sample.json").write_text(json.dumps({"input": "word", "output": word}))
    write_manifest(folder)
    return folder


class Slow(Echo):
    """Answers with a delay, and records the batch sizes in a file."""

    def __init__(self, sizes: Path, seconds: float) -> None:
        self.sizes, self.seconds = sizes, seconds

    def apply_batch(self, payloads: list[Any], model: str) -> list[Any]:
        with self.sizes.open("a") as file:
            file.write(f"{len(payloads)}\n")
        time.sleep(self.seconds)
        return [super(Slow, self).apply(payload, model) for payload in payloads]

    def apply(self, payload: Any, model: str) -> Any:
        return self.apply_batch([payload], model)[0]


class Careless(Echo):
    """Echo with errors of a type of its own, and with descriptions that the log cannot use."""

    class Kind(StrEnum):
        REFUSED = "UnsupportedError"

    def apply(self, payload: Any, model: str) -> Any:
        if payload == "enum":
            error = RuntimeError("not this one")
            error.error_type = self.Kind.REFUSED  # type: ignore[attr-defined]
            raise error
        return super().apply(payload, model)

    def watch(self, payload: Any, answer: Any, model: Any) -> Any:
        if payload == "leave":
            raise SystemExit(2)
        return ["a list"] if payload == "list" else {"length": 1.0}

    def watch_batch(self, payloads: list[Any], answers: list[Any], model: Any) -> Any:
        return [{"length": 2.0}] * (len(payloads) - 1)


class Freezing(Echo):
    """Echo with inputs that block or end its process, or return its process id."""

    def apply(self, payload: Any, model: str) -> Any:
        match payload:
            case "spin":
                while True:
                    pass
            case {"freeze": seconds}:  # like a slow regular expression: blocks other threads, too
                ctypes.PyDLL(None).usleep(int(seconds * 1e6))
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "process":
                return os.getpid()
        return super().apply(payload, model)

    def apply_batch(self, payloads: list[Any], model: str) -> list[Any]:
        return [self.apply(payload, model) for payload in payloads]


class Digits:
    """A small network on 64 numbers, in batches."""

    def load(self, model_dir: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(str(model_dir / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def apply(self, payload: Any, model: onnxruntime.InferenceSession) -> Any:
        return self.apply_batch([payload], model)[0]

    def apply_batch(self, payloads: list[Any], model: onnxruntime.InferenceSession) -> list[Any]:
        try:
            with np.errstate(over="ignore"):
                images = np.array(payloads, np.float32).reshape(-1, 64)
        except (ValueError, TypeError):
            raise ValueError("an image is 64 numbers") from None
        if len(images) != len(payloads) or not ((images >= 0) & (images <= 16)).all():
            raise ValueError("an image is 64 numbers from 0 to 16")
        probabilities = model.run(None, {"image": images})[0]
        return [
            {"label": int(row.argmax()), "confidence": float(row.max()), "probabilities": row.tolist()}
            for row in probabilities
        ]

    def watch(self, payload: Any, answer: Any, model: Any) -> dict[str, Any]:
        described = {"mean": float(np.mean(payload)), "std": float(np.std(payload))}
        return {"label": str(answer["label"]), "confidence": answer["confidence"], **described}


class Labelled(Digits):
    """Digits with one of `classes` names as the label in the log."""

    def __init__(self, classes: int, name: str) -> None:
        self.classes, self.name = classes, name

    def watch(self, payload: Any, answer: Any, model: Any) -> dict[str, Any]:
        return super().watch(payload, answer, model) | {"label": f"{self.name} {sum(payload) % self.classes}"}


def digits_folder(folder: Path, seed: int = 0) -> Path:
    """A model folder of Digits with random weights and a recorded sample."""
    folder.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32) / 30
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["image", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["p"]),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    image = [number % 17 for number in range(64)]
    answer = Digits().apply(image, Digits().load(folder))
    (folder / "sample.json").write_text(json.dumps({"input": image, "output": answer}))
    write_manifest(folder)
    return folder
