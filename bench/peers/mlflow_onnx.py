"""The model on `mlflow models serve`: FOLDER PORT."""

import os
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from classifier import Classifier


class Digits(mlflow.pyfunc.PythonModel):
    """A pyfunc model over the ONNX file."""

    def load_context(self, context):
        self.classifier = Classifier(str(Path(context.artifacts["model"]).parent))

    def predict(self, context, model_input, params=None):
        return [self.classifier(image) for image in np.asarray(model_input)]


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the search path for uvicorn
    folder = str(Path(tempfile.mkdtemp()) / "model")
    artifacts = {"model": str(Path(sys.argv[1]) / "model.onnx")}
    mlflow.pyfunc.save_model(
        folder,
        python_model=Digits(),
        artifacts=artifacts,
        code_paths=[str(Path(__file__).parent / "classifier.py")],
    )
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        folder,
        "-p",
        sys.argv[2],
        "--env-manager",
        "local",
        "--workers",
        "1",
    ]
    os.execv(sys.executable, [sys.executable, "-m", *command])
