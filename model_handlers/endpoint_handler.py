"""VertexEndpointHandler: RunInference over record batches with a model behind an endpoint.

Like TorchModelHandler, it returns every row, and failed rows have an error. If the endpoint is down
or serves another model, the bundle fails, and Beam retries it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from cloud.endpoint_client import Stats
from cloud.vertex import EndpointAddress
from common.errors import UsageError
from model_handlers.batch_handler import NAMESPACE, BatchHandler, error_column, outputs_column
from model_handlers.endpoint import Endpoint, RequestLimits
from model_handlers.endpoint_codec import EndpointCodec, InstanceFormat
from model_handlers.manifest import Manifest
from model_handlers.prediction_cache import PredictionCache

# Each batch waits for its slowest request. In a batch of many requests, that wait matters less.
BATCH_ROWS = 16_384


class VertexEndpointHandler(BatchHandler[Endpoint]):
    """A ModelHandler that gets the predictions of record batches from an endpoint.

    Args:
        address: The address of the endpoint. It is resolved on the worker; building the pipeline
            sends no request.
        manifest: The manifest of the model; the model file is not read.
        outputs: The names of the outputs to return; all by default.
        instance_format: `list` or `named`; see EndpointCodec.
        parameters: The `parameters` of every request, as the text of a JSON object.
        limits: The limits of requests.
        batch_rows: The maximum number of rows in a batch.
        cache_rows: How many predictions a process caches, for rows that occur again; 0 for no
            cache. Use it only if the endpoint's model does not change while the pipeline runs.

    Raises:
        UsageError: An argument is invalid.
    """

    def __init__(
        self,
        address: EndpointAddress,
        manifest: Manifest,
        *,
        outputs: Sequence[str] | None = None,
        instance_format: InstanceFormat = "list",
        parameters: str | None = None,
        limits: RequestLimits | None = None,
        batch_rows: int = BATCH_ROWS,
        cache_rows: int = 0,
    ) -> None:
        super().__init__(manifest, outputs, batch_rows)
        if cache_rows < 0:
            raise UsageError(f"cache_rows must be at least 0, got {cache_rows}")
        self.address, self.limits = address, limits or RequestLimits()
        self.cache_rows = cache_rows
        specs = tuple(manifest.output(name) for name in self.outputs)
        self.codec = EndpointCodec(manifest, specs, instance_format, parameters)

    def load_model(self) -> Endpoint:
        """Find the endpoint and connect to it; called by Beam once per process.

        Raises:
            EndpointError: The endpoint does not exist or cannot be used.
            CredentialsError: There are no credentials that can be used.
        """
        client = self.address.connect(
            concurrency=self.limits.concurrency,
            timeout_seconds=self.limits.timeout_seconds,
            retry_seconds=self.limits.retry_seconds,
            digest=self.manifest.sha256,
        )
        cache = PredictionCache(self.codec.outputs, self.cache_rows) if self.cache_rows else None
        return Endpoint(client, self.codec, self.limits, cache)

    def predict(
        self, model: Endpoint, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Get predictions from the endpoint, and return the columns `outputs` and `error`."""
        hits = 0
        try:
            answers = model.predict(arrays, rows)
            hits = answers.hits
        finally:
            self._count(model.client.take_stats(), hits)
        columns = outputs_column(self.codec.outputs, answers.outputs, list(answers.faults), rows)
        return columns, error_column(answers.faults, arrays, rows)

    def _count(self, stats: Stats, hits: int) -> None:
        """Add the client's statistics to Beam's metrics; only the thread of a bundle can do so."""
        for name, count in counters(stats, hits).items():
            if count:
                Metrics.counter(NAMESPACE, name).inc(count)
        latency = Metrics.distribution(NAMESPACE, "endpoint_request_ms")
        for seconds in stats.seconds:
            latency.update(round(seconds * 1000))
        if stats.requests:
            Metrics.distribution(NAMESPACE, "endpoint_in_flight").update(stats.most_in_flight)


def counters(stats: Stats, hits: int) -> dict[str, int]:
    """Return by how much each counter of Beam grows, by its name.

    Args:
        stats: What the client has done.
        hits: How many rows were found in the cache.
    """
    return {
        "endpoint_requests": stats.requests,
        "endpoint_retries": stats.retries,
        "endpoint_bytes_sent": stats.bytes_sent,
        "endpoint_cache_hits": hits,
        # Dataflow's autoscaler reads this metric, and adds no workers while it grows.
        "cumulativeThrottlingSeconds": stats.throttled,
        **{f"endpoint_answers_{kind}": count for kind, count in stats.answers.items()},
    }
