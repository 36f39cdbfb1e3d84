"""The model on BentoML: FOLDER PORT."""

import os
import sys

import bentoml
from classifier import Classifier


@bentoml.service(workers=1)
class Digits:
    """One worker."""

    def __init__(self) -> None:
        self.classifier = Classifier(os.environ["DIGITS"])

    @bentoml.api
    def predict(self, image: list[float]) -> dict:
        return self.classifier(image)


if __name__ == "__main__":
    os.environ["DIGITS"] = sys.argv[1]
    command = ["bentoml", "serve", "bentoml_onnx:Digits", "--port", sys.argv[2]]
    os.execv(sys.executable, [sys.executable, "-m", *command])
