"""The model on Starlette and onnxruntime, one run a request: FOLDER PORT."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(str(Path(sys.argv[1]) / "model.onnx"), options)


async def predict(request):
    image = np.asarray(await request.json(), np.float32).reshape(1, 8, 8)
    probabilities = session.run(None, {"image": image})[0][0].tolist()
    label = probabilities.index(max(probabilities))
    return JSONResponse({"label": label, "confidence": probabilities[label], "probabilities": probabilities})


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False, ws="none")
