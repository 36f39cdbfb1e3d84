"""A model folder with model.onnx in MLServer."""

from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor


class OnnxModel(MLModel):
    """Runs the graph of the folder that `parameters.uri` of the settings names."""

    async def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(Path(self.settings.parameters.uri) / "model.onnx")
        self.inputs = [_described(node) for node in self.session.get_inputs()]
        self.outputs = [_described(node) for node in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        names = [output.name for output in self.outputs]
        answers = zip(names, self.session.run(names, given), strict=True)
        outputs = [NumpyCodec.encode_output(name, values) for name, values in answers]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def _described(node: onnxruntime.NodeArg) -> MetadataTensor:
    kind = {"tensor(float)": "FP32"}[node.type]
    shape = [size if isinstance(size, int) else -1 for size in node.shape]
    return MetadataTensor(name=node.name, datatype=kind, shape=shape)
