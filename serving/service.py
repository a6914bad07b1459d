"""The model that is served, and the state that the health route reports."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cloud.clients import Cloud
from cloud.endpoint_client import DIGEST_HEADER, PREPARATION_HEADER
from common.errors import DeviceError, MillraceError, MissingDevice, UsageError, one_line
from common.memory import MORE_MEMORY, is_of_memory, out_of_memory
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import preparation_digest
from model_handlers.manifests.thresholds import check_used, with_thresholds
from model_handlers.package import read_manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.preparation import Preparation, golden_tensors
from model_handlers.run_model import Answer
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trusted_code import TrustedCode
from serving.batcher import Batcher
from serving.fetch import fetch_package
from serving.instances import InstanceReader, RawInstances
from serving.metrics import Metrics
from serving.predictions import SCORE_KEY, Choice, choose
from serving.settings import Settings

logger = logging.getLogger("serving")
# With this header an answer names its package, whose digest also covers steps and fields. Pipelines
# compare only the other headers: they compute the fields themselves.
PACKAGE_HEADER = "X-Package-Digest"


def digest_headers(manifest: Manifest) -> dict[str, str]:
    """Return the headers that name a model and its package."""
    return {DIGEST_HEADER: manifest.sha256, PACKAGE_HEADER: manifest.digest}


class State(Enum):
    """The state of a server."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Loaded:
    """A model package in memory.

    Attributes:
        manifest: The manifest, with the chosen score output and thresholds.
        choice: What predictions contain unless a request chooses other fields.
        chosen: The model with the outputs of these fields.
        whole: The model with all outputs, or None if requests cannot choose fields.
        preparation: The steps from outputs to fields, or None if the model has no fields.
    """

    manifest: Manifest
    choice: Choice
    chosen: LoadedModel
    whole: LoadedModel | None
    preparation: Preparation | None


def load(settings: Settings, folder: Path) -> Loaded:
    """Fetch, load and check a model package, with the same checks as on a worker.

    Args:
        settings: The settings of the server.
        folder: An empty folder for files from Cloud Storage.

    Raises:
        MillraceError: If the package cannot be read or loaded, or a setting does not fit it.
    """
    path = fetch_package(settings.model_path, folder, Cloud("serving"))
    packaged = read_manifest(
        path, digest=settings.model_digest, feature_columns=settings.feature_columns
    ).choose(settings.score_output)
    manifest = with_thresholds(packaged, settings.thresholds)
    choice = choose(manifest, settings.outputs)
    if settings.fixed_outputs:
        check_used(manifest, settings.thresholds, [*choice.derived], "outputs")
    if taken := [key for key in settings.instance_keys if key in (*manifest.results, SCORE_KEY)]:
        kind = "a field" if taken[0] in {s.name for s in manifest.fields} else "an output"
        raise UsageError(
            f"--instance_keys: {taken[0]!r} is {kind} of model {manifest.name}: choose fields "
            "that predictions do not have"
        )
    every = [spec.name for spec in manifest.outputs]
    names = [name for name in every if name in choice.outputs]
    chosen = _load_model(path, packaged, settings, names)
    whole: LoadedModel | None = chosen
    if names != every:
        whole = None if settings.fixed_outputs else _load_model(path, packaged, settings, every)
    steps = None
    if manifest.fields:
        code = TrustedCode.of_package(settings.trusted_modules, path)
        steps = PackagedSteps(manifest, path, code).load()
    return Loaded(manifest, choice, chosen, whole, steps)


def _load_model(
    path: str, manifest: Manifest, settings: Settings, outputs: Sequence[str]
) -> LoadedModel:
    handler = TorchModelHandler(
        path,
        manifest,
        outputs=outputs,
        device=settings.device,
        precision=settings.precision,
        batch_rows=settings.max_batch_rows,
        threads=settings.threads,
        # The server runs one pass at a time.
        every_gpu=False,
        trusted_modules=settings.trusted_modules,
    )
    model = handler.load_model()
    if manifest.golden is not None:
        # TorchScript compiles during its first passes, so run them before the first request.
        rows = golden_tensors(manifest, manifest.golden, model.preparation)
        for _ in range(3):
            model.forward(rows, slice(0, len(rows[0])))
    return model


class Service:
    """The model of a server, from loading to shutdown; use it in one event loop.

    Args:
        settings: The settings of the server.

    Attributes:
        state: The state of the server.
        reason: Why the server failed; empty in other states.
        in_flight: The number of requests that are being answered.
        on_loaded: Is called in the model's thread when the model is loaded.
        manifest: The manifest of the model, once it is loaded.
        choice: What predictions contain by default, once the model is loaded.
        reader: The reader of instances, once the model is loaded.
        tensor_reader: The reader of instances that clients have prepared. Without steps, it is
            `reader`.
        headers: Headers of all answers, which name the model and its steps, once it is loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.watch(lambda: self.in_flight, lambda: sum(b.waiting for b in self._batchers))
        self.state = State.LOADING
        self.reason = ""
        self.in_flight = 0
        self.on_loaded: Callable[[], None] = lambda: None
        self.headers: Mapping[str, str] = {}
        self._batchers: list[Batcher] = []
        # One thread, because torch stores its thread count separately for each thread, and a device
        # runs one pass at a time anyway.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def load(self) -> None:
        """Load the model; afterwards the state is READY, or FAILED with a reason."""
        loop = asyncio.get_running_loop()
        try:
            with tempfile.TemporaryDirectory(prefix="millrace-model-") as folder:
                loaded = await loop.run_in_executor(
                    self._executor, load, self.settings, Path(folder)
                )
            self._use(loaded)
            await loop.run_in_executor(self._executor, self.on_loaded)
        except Exception as error:  # the health route has to report any error
            if is_of_memory(error):
                error = out_of_memory(one_line(error), MORE_MEMORY)
            known = isinstance(error, MillraceError)
            self.fail(str(error) if known else f"{type(error).__name__}: {one_line(error)}")
            return
        if self.state is State.LOADING:
            self.state = State.READY
            logger.info("serving %s %s", self.manifest.name, self.manifest.version)

    def _use(self, loaded: Loaded) -> None:
        """Prepare to answer requests with a model."""
        self.manifest, self.choice = loaded.manifest, loaded.choice
        self.reader = InstanceReader(loaded.manifest, loaded.chosen.preparation)
        self.tensor_reader, self.headers = self.reader, digest_headers(loaded.manifest)
        if (steps := preparation_digest(loaded.manifest)) is not None:
            self.tensor_reader = InstanceReader(loaded.manifest.prepared)
            self.headers |= {PREPARATION_HEADER: steps}
        self._chosen = self._batcher(loaded.chosen, loaded.preparation)
        self._whole: Batcher | None = self._chosen
        if loaded.whole is not loaded.chosen:
            self._whole = self._batcher(loaded.whole, loaded.preparation) if loaded.whole else None
        self.metrics.serve(loaded.manifest)

    def _batcher(self, model: LoadedModel, preparation: Preparation | None) -> Batcher:
        batcher = Batcher(
            model,
            self._executor,
            max_rows=model.batch_rows,
            max_wait=self.settings.max_batch_wait_ms / 1000,
            observe=self.metrics.passed,
            preparation=preparation,
            reader=self.reader,
        )
        self._batchers.append(batcher)
        return batcher

    def fail(self, reason: str) -> None:
        """Log why the model cannot be served any more, and set the state to FAILED."""
        self.state, self.reason = State.FAILED, reason
        logger.error("%s", reason)

    def drain(self) -> None:
        """Refuse new requests; requests in flight are still answered."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def close(self) -> None:
        """Stop the model's thread after the current pass."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the health route says about the model."""
        steps = self.headers.get(PREPARATION_HEADER)
        return {
            "name": self.manifest.name,
            "version": self.manifest.version,
            "sha256": self.manifest.sha256,
            "digest": self.manifest.digest,
            "schema_version": self.manifest.schema_version,
            "prepares": self.manifest.has_steps,
            **({} if steps is None else {"preparation": steps}),
        }

    def choose(self, outputs: str | Sequence[str] | None) -> Choice:
        """Return what the answer to a request contains.

        Args:
            outputs: `parameters.outputs` of the request; None for the default fields.

        Raises:
            UsageError: If an output does not exist.
        """
        return self.choice if outputs is None else choose(self.manifest, outputs)

    def batcher(self, choice: Choice) -> Batcher | None:
        """Return the batcher of a model with these outputs, or None if no such model is loaded."""
        return self._chosen if choice.outputs <= self.choice.outputs else self._whole

    async def predict(
        self, batcher: Batcher, reader: InstanceReader, instances: Sequence[Any], choice: Choice
    ) -> Answer:
        """Run the model of a batcher on the rows of one request.

        Args:
            batcher: The batcher that `batcher` returned.
            reader: The reader of the instances.
            instances: One or more instances of the request.
            choice: What the answer contains.

        Raises:
            BadInstances: If any row is bad; it lists all of them.
            DeviceError: If the accelerator failed; the state is FAILED then.
            MissingDevice: If the machine lacks what the model needs for these rows.
            ContractBroken: If the model does not do what its manifest says.
            MemoryError: If there is not enough memory for the pass.
        """
        # Steps take milliseconds, so they run outside the event loop.
        inputs = RawInstances(instances) if reader.prepares else reader.read(instances)
        try:
            return await batcher.predict(inputs, choice.derived)
        except MissingDevice:
            # Only some rows need what this machine lacks.
            raise
        except DeviceError as error:
            # Every later pass would fail too. A new container may get a working device.
            self.fail(str(error))
            raise
