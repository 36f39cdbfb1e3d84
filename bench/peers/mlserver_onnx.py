"""The model on MLServer: FOLDER PORT."""

import json
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    folder, port = Path(tempfile.mkdtemp()), int(sys.argv[2])
    settings = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "parallel_workers": 0}
    (folder / "settings.json").write_text(json.dumps({**settings, "host": "127.0.0.1", "debug": False}))
    model = {"name": "digits", "implementation": "mlserver_onnx.Digits", "parameters": {"uri": sys.argv[1]}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    program = str(Path(sys.executable).parent / "mlserver")
    os.execv(program, [program, "start", str(folder)])

from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Digits(MLModel):
    """Returns probabilities in the V2 protocol."""

    async def load(self):
        self.classifier = Classifier(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        import numpy as np

        answer = self.classifier(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output("probabilities", np.array([answer["probabilities"]]))
        return InferenceResponse(model_name=self.name, outputs=[output])
