"""VertexEndpointHandler: RunInference over record batches with a model behind an endpoint.

Like TorchModelHandler, it returns every row, and failed rows have an error. If the endpoint is down
or serves another model, the bundle fails, and Beam retries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from cloud.endpoint_stats import Stats
from cloud.vertex import EndpointAddress
from common.errors import UsageError
from common.record_batch import BATCH_BYTES
from model_handlers.batch_handler import NAMESPACE, BatchHandler, error_column, outputs_column
from model_handlers.endpoints.codec import EndpointCodec, InstanceFormat
from model_handlers.endpoints.endpoint import Answers, Endpoint, RequestLimits
from model_handlers.endpoints.known_row import known_raw, known_tensors
from model_handlers.endpoints.prediction_cache import PredictionCache
from model_handlers.endpoints.request_rows import EndpointRows, TensorRows, raw_rows
from model_handlers.manifests.manifest import GoldenRows, Manifest
from model_handlers.manifests.model_json import preparation_digest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.preparation import Preparation
from model_handlers.read_package import read_golden
from model_handlers.trusted_code import TrustedCode

# Each batch waits for its slowest request. In a batch of many requests, that wait matters less.
BATCH_ROWS = 16_384
# Where the steps of a package turn rows into tensors.
Place = Literal["worker", "server"]


class VertexEndpointHandler(BatchHandler[Endpoint]):
    """A ModelHandler that gets the predictions of record batches from an endpoint.

    Args:
        address: The address of the endpoint. It is resolved on the worker; building the pipeline
            sends no request.
        manifest: The manifest of the model; the model file is not read.
        outputs: The names of the outputs to return; all by default.
        instance_format: `list` or `named`; see EndpointCodec. By default `list` if the model has
            one input. Rows that the server prepares are always objects.
        parameters: The `parameters` of every request, as the text of a JSON object.
        limits: The limits of requests.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch.
        cache_rows: How many predictions a process caches, for rows that occur again; 0 for no
            cache. Use it only if the endpoint's model does not change while the pipeline runs.
        package: The path of the package, from which a worker reads the files of steps and the
            known-good rows; None if the steps need no files.
        trusted_modules: The top-level modules from which steps may import functions.
        prepare_at: Where the steps of the package prepare rows: `worker`, which sends tensors, or
            `server`, which gets the columns of the source. The worker judges rows in both cases.

    Raises:
        UsageError: An argument is invalid.
    """

    def __init__(
        self,
        address: EndpointAddress,
        manifest: Manifest,
        *,
        outputs: Sequence[str] | None = None,
        instance_format: InstanceFormat | None = None,
        parameters: str | None = None,
        limits: RequestLimits | None = None,
        batch_rows: int = BATCH_ROWS,
        batch_bytes: int = BATCH_BYTES,
        cache_rows: int = 0,
        package: str | None = None,
        trusted_modules: Sequence[str] = (),
        prepare_at: Place = "worker",
    ) -> None:
        super().__init__(manifest, outputs, batch_rows, batch_bytes)
        if cache_rows < 0:
            raise UsageError(f"cache_rows must be at least 0, got {cache_rows}")
        if prepare_at not in get_args(Place):
            raise UsageError(f"prepare_at must be worker or server, got {prepare_at}")
        if prepare_at == "server" and not manifest.has_steps:
            raise UsageError(
                f"prepare_at is server, but model {manifest.name} has no steps that prepare rows"
            )
        self.address, self.limits = address, limits or RequestLimits()
        self.cache_rows, self.prepare_at = cache_rows, prepare_at
        self.package = package
        if package is not None:
            self.code = TrustedCode.of_package(trusted_modules, package)
        else:
            self.code = TrustedCode(tuple(trusted_modules))
        if instance_format is None or prepare_at == "server":
            single = len(manifest.inputs) == 1 and prepare_at == "worker"
            instance_format = "list" if single else "named"
        specs = tuple(manifest.output(name) for name in self.outputs)
        self.codec = EndpointCodec(manifest, specs, instance_format, parameters)

    def load_model(self) -> Endpoint:
        """Find the endpoint and connect to it; called by Beam once per process.

        Raises:
            EndpointError: The endpoint does not exist or cannot be used.
            CredentialsError: There are no credentials that can be used.
            ModelError: The steps of the package cannot be read.
        """
        at_server = self.prepare_at == "server"
        golden, known = self._known_rows()
        client = self.address.connect(
            concurrency=self.limits.concurrency,
            timeout_seconds=self.limits.timeout_seconds,
            retry_seconds=self.limits.retry_seconds,
            digest=self.manifest.sha256,
            preparation=preparation_digest(self.manifest) if at_server else None,
        )
        cache = PredictionCache(self.codec.outputs, self.cache_rows) if self.cache_rows else None
        return Endpoint(client, self.codec, self.limits, known, golden, cache)

    def _known_rows(self) -> tuple[GoldenRows | None, EndpointRows]:
        """Return the known-good rows, and a row that the endpoint must be able to process."""
        golden, manifest = self.manifest.golden, self.manifest
        preparation: Preparation | None = None
        if manifest.has_steps:
            preparation = PackagedSteps(manifest, self.package, self.code).load()
            if golden is None and self.package is not None:
                golden = read_golden(self.package, manifest)
            if self.prepare_at == "server":
                return golden, known_raw(manifest, golden, preparation)
        return golden, known_tensors(self.codec, golden, preparation)

    def predict(
        self, model: Endpoint, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Get predictions from the endpoint, and return the columns `outputs` and `error`."""
        answers = self._ask(model, TensorRows(self.codec, arrays))
        return self._columns(answers, rows), error_column(answers.faults, arrays, rows)

    def answer(
        self, model: Endpoint, batches: Sequence[pa.RecordBatch], arrays: Sequence[np.ndarray]
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Get predictions for batches, whose raw columns are sent if the server prepares rows."""
        if self.prepare_at == "worker":
            return super().answer(model, batches, arrays)
        rows = raw_rows(batches, arrays, self.manifest)
        answers = self._ask(model, rows)
        error = error_column(answers.faults, arrays, len(rows), rows.cells)
        return self._columns(answers, len(rows)), error

    def _ask(self, model: Endpoint, rows: EndpointRows) -> Answers:
        """Get predictions from the endpoint, and count what its client did."""
        hits = 0
        try:
            answers = model.predict(rows)
            hits = answers.hits
        finally:
            self._count(model.client.take_stats(), hits)
        return answers

    def _columns(self, answers: Answers, rows: int) -> pa.StructArray:
        return outputs_column(self.codec.outputs, answers.outputs, list(answers.faults), rows)

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
