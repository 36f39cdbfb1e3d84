"""The model on onnxruntime, for frameworks with a server."""

from pathlib import Path

import numpy as np
import onnxruntime


class Classifier:
    """A session that classifies one image or several."""

    def __init__(self, folder: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), options)

    def __call__(self, image):
        image = np.asarray(image, np.float32).reshape(1, 8, 8)
        probabilities = self.session.run(None, {"image": image})[0][0].tolist()
        label = probabilities.index(max(probabilities))
        return {"label": label, "confidence": probabilities[label], "probabilities": probabilities}
