"""The model on FastAPI and torch, asynchronous handler: FOLDER PORT."""

import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

torch.set_num_threads(1)
net = torch.jit.load(str(Path(sys.argv[1]) / "model.pt")).eval()
app = FastAPI()


@app.post("/predict")
async def predict(image: list[float]):
    with torch.inference_mode():
        probabilities = net(torch.tensor(image).reshape(1, 8, 8)).softmax(1)[0]
    label = int(probabilities.argmax())
    return {
        "label": label,
        "confidence": float(probabilities[label]),
        "probabilities": probabilities.tolist(),
    }


uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False, ws="none")
