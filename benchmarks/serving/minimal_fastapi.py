"""The endpoint that a careful developer writes in an hour: FastAPI, torch, one dict per row."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request


def make_app(model_file: str) -> FastAPI:
    """Return an app that predicts the score and the latent values of each instance."""
    app = FastAPI()
    torch.set_num_threads(1)
    model = torch.jit.load(model_file).eval()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        body = await request.json()
        rows = torch.tensor(body["instances"], dtype=torch.float32)
        with torch.no_grad():
            outputs = model(rows)
        predictions = [
            {
                "anomaly_score": float(outputs["denormalized_MAE"][i]),
                "encoded": outputs["encoded"][i].tolist(),
            }
            for i in range(len(rows))
        ]
        return {"predictions": predictions}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_file", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(make_app(args.model_file), port=args.port, log_level="warning")
