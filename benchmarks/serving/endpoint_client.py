"""Measures what requests to an endpoint cost a handler, and prints a line of JSON.

It runs in a separate process, so the CPU time contains nothing else.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.record_batch import INPUTS, OUTPUTS
from model_handlers.manifests.tolerance import TOLERANCE
from model_handlers.package import read_manifest

SCORE, CODE = "denormalized_MAE", "encoded"
GATE_ROWS = 200
NAME = "projects/p-12345/locations/us-central1/endpoints/1"
RESOURCE = {"name": NAME, "deployedModels": [{"id": "1"}]}

# Returns the scores [rows] and the codes [rows, 4] of features [rows, 30].
Ask = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def millrace(url: str, model: Path, rows: int, concurrency: int) -> Ask:
    """Use VertexEndpointHandler, with record batches as in a pipeline."""
    from cloud.vertex import EndpointAddress
    from model_handlers.endpoints.endpoint import RequestLimits
    from model_handlers.endpoints.handler import VertexEndpointHandler

    manifest = read_manifest(str(model))
    handler = VertexEndpointHandler(
        EndpointAddress(url=url),
        manifest,
        outputs=[SCORE, CODE],
        limits=RequestLimits(rows=rows, concurrency=concurrency),
    )
    endpoint = handler.load_model()
    (spec,) = manifest.inputs

    def ask(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), spec.width)
        inputs = pa.StructArray.from_arrays([column], [spec.name])
        batch = pa.record_batch({INPUTS: inputs})
        answers = handler.run_inference([batch], endpoint)[0].column(OUTPUTS)
        code = answers.field(CODE).flatten().to_numpy().reshape(-1, 4)
        return answers.field(SCORE).to_numpy(), code

    return ask


def endpoint_resource() -> str:
    """Start an API that only describes the endpoint, and return its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(RESOURCE).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def stock_beam(url: str, model: Path, rows: int, concurrency: int) -> Ask:
    """Use Beam's VertexAIModelHandlerJSON, with lists of floats, in `concurrency` threads."""
    from apache_beam.ml.inference.vertex_ai_inference import VertexAIModelHandlerJSON
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform

    def point_at(address: str) -> None:
        aiplatform.init(
            project="p-12345",
            location="us-central1",
            credentials=AnonymousCredentials(),
            api_endpoint=address,
            api_transport="rest",
        )

    point_at(endpoint_resource())
    handler = VertexAIModelHandlerJSON("1", "p-12345", "us-central1")
    client = handler.create_client()
    # Requests for predictions go to the same server as those of the others. The client for them is
    # created on first use, while the client for the description already exists.
    point_at(url.removesuffix("/predict"))
    pool = ThreadPoolExecutor(concurrency)

    def request(some: list[list[float]]) -> list[Any]:
        return list(handler.request(some, client))

    def ask(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        listed = values.tolist()
        parts = [listed[start : start + rows] for start in range(0, len(listed), rows)]
        answers = [result.inference for part in pool.map(request, parts) for result in part]
        scores = np.array([answer["anomaly_score"] for answer in answers])
        return scores, np.array([answer[CODE] for answer in answers])

    return ask


CONTESTANTS = {"millrace": millrace, "stock_beam": stock_beam}


def find_fault(ask: Ask, model: Path) -> str:
    """Return how the predictions differ from those of the model, empty if they do not."""
    values = np.random.default_rng(3).normal(size=(GATE_ROWS, 30)).astype(np.float32)
    with torch.inference_mode():
        expected = torch.jit.load(model / "model.pt")(torch.from_numpy(values))
    for got, name in zip(ask(values), (SCORE, CODE), strict=True):
        if got.shape != tuple(expected[name].shape):
            return f"{name}: {got.shape} for {GATE_ROWS} rows"
        if not TOLERANCE.agree(got, expected[name]).all():
            return f"{name} differs by {abs(got - expected[name].numpy()).max()}"
    return ""


def measure(ask: Ask, rows: int, seconds: float, warm: float = 1.0) -> dict[str, float]:
    """Predict batches for at least `seconds`, and return rows, wall seconds and CPU seconds."""
    values = np.random.default_rng(5).normal(size=(rows, 30)).astype(np.float32)
    until = time.perf_counter() + warm
    while time.perf_counter() < until:
        ask(values)
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    while not done or time.perf_counter() - wall < seconds:
        ask(values)
        done += rows
    return {
        "rows": done,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def main(argv: list[str] | None = None) -> int:
    """Print the figures as a line of JSON. Return 1 if the predictions are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("url")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--batch_rows", type=int, default=16_384)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    contestant = CONTESTANTS[args.contestant]
    ask = contestant(args.url, args.model, args.rows, args.concurrency)
    if fault := find_fault(ask, args.model):
        print(json.dumps({"fault": fault}))
        return 1
    print(json.dumps(measure(ask, args.batch_rows, args.seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
