"""The model that is served, and the state that the health route tells."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from cloud.clients import Cloud
from common.errors import DeviceError, MillraceError, one_line
from common.memory import MORE_MEMORY, is_of_memory, out_of_memory
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifest import Manifest
from model_handlers.package import read_manifest
from model_handlers.run_model import Answer
from model_handlers.torch_model import TorchModelHandler
from serving.batcher import Batcher
from serving.fetch import fetch_package
from serving.instances import InstanceReader
from serving.metrics import Metrics
from serving.predictions import Field, prediction_fields
from serving.settings import Settings

logger = logging.getLogger("serving")


class State(Enum):
    """What a server can do now."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Loaded:
    """A model package in memory. whole: with all outputs, where requests may choose."""

    manifest: Manifest
    fields: tuple[Field, ...]
    chosen: LoadedModel
    whole: LoadedModel | None


def load(settings: Settings, folder: Path) -> Loaded:
    """Settings, a folder for what is fetched -> the model, checked as on a worker.

    Raises MillraceError.
    """
    path = fetch_package(settings.model_path, folder, Cloud("serving"))
    manifest = read_manifest(
        path, digest=settings.model_digest, feature_columns=settings.feature_columns
    ).choose(settings.score_output)
    fields = prediction_fields(manifest, settings.outputs)
    names = list(dict.fromkeys(field.output for field in fields))
    chosen = _load_model(path, manifest, settings, names)
    every = [spec.name for spec in manifest.outputs]
    if set(names) == set(every):
        return Loaded(manifest, fields, chosen, chosen)
    whole = None if settings.fixed_outputs else _load_model(path, manifest, settings, every)
    return Loaded(manifest, fields, chosen, whole)


def _load_model(
    path: str, manifest: Manifest, settings: Settings, outputs: Sequence[str]
) -> LoadedModel:
    handler = TorchModelHandler(
        path,
        manifest,
        outputs=outputs,
        device=settings.device,
        precision=settings.precision,  # type: ignore[arg-type]
        batch_rows=settings.max_batch_rows,
        threads=settings.threads,
        trusted_modules=settings.trusted_modules,
    )
    model = handler.load_model()
    if manifest.golden is not None:
        # TorchScript compiles during its first passes, which no request should wait for.
        rows = [np.asarray(manifest.golden.inputs[s.name], s.dtype) for s in manifest.inputs]
        for _ in range(3):
            model.forward(rows, slice(0, len(rows[0])))
    return model


class Service:
    """A model that loads, serves and ends; used in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.watch(lambda: self.in_flight, lambda: sum(b.waiting for b in self._batchers))
        self.state = State.LOADING
        self.reason = ""
        self.in_flight = 0
        self._batchers: list[Batcher] = []
        # One thread: torch keeps its number of threads by thread, and a device does one thing
        # at a time.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def load(self) -> None:
        """Loads the model; the state tells how it went."""
        loop = asyncio.get_running_loop()
        try:
            with tempfile.TemporaryDirectory(prefix="millrace-model-") as folder:
                loaded = await loop.run_in_executor(
                    self._executor, load, self.settings, Path(folder)
                )
        except Exception as error:  # whatever it is, the health route has to tell it
            if is_of_memory(error):
                error = out_of_memory(one_line(error), MORE_MEMORY)
            known = isinstance(error, MillraceError)
            self.fail(str(error) if known else f"{type(error).__name__}: {one_line(error)}")
            return
        self.manifest, self.fields = loaded.manifest, loaded.fields
        self.reader = InstanceReader(loaded.manifest)
        self._chosen = self._batcher(loaded.chosen)
        self._whole: Batcher | None = self._chosen
        if loaded.whole is not loaded.chosen:
            self._whole = self._batcher(loaded.whole) if loaded.whole else None
        self.metrics.serve(loaded.manifest)
        if self.state is State.LOADING:
            self.state = State.READY
            logger.info("serving %s %s", loaded.manifest.name, loaded.manifest.version)

    def _batcher(self, model: LoadedModel) -> Batcher:
        batcher = Batcher(
            model,
            self._executor,
            max_rows=self.settings.max_batch_rows,
            max_wait=self.settings.max_batch_wait_ms / 1000,
            observe=self.metrics.passed,
        )
        self._batchers.append(batcher)
        return batcher

    def fail(self, reason: str) -> None:
        """The reason for which nothing can be served any more."""
        self.state, self.reason = State.FAILED, reason
        logger.error("%s", reason)

    def drain(self) -> None:
        """Takes no new requests; those in flight go on."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def close(self) -> None:
        """Ends the model's thread after the pass that runs."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def choose(self, outputs: str | Sequence[str] | None) -> tuple[Field, ...]:
        """`parameters.outputs` of a request -> its fields. Raises UsageError."""
        return self.fields if outputs is None else prediction_fields(self.manifest, outputs)

    def batcher(self, fields: Sequence[Field]) -> Batcher | None:
        """Fields -> the model that has them, None if it is not loaded."""
        has = {spec.name for spec in self._chosen.model.outputs}
        return self._chosen if has.issuperset(f.output for f in fields) else self._whole

    async def predict(self, batcher: Batcher, inputs: list[np.ndarray]) -> Answer:
        """A model and checked inputs -> the Answer. Raises what the machine raises."""
        try:
            return await batcher.predict(inputs)
        except DeviceError as error:
            # After that every pass fails; a new container may be luckier.
            self.fail(str(error))
            raise


def arrays_of(batcher: Batcher, answer: Answer, fields: Sequence[Field]) -> list[Any]:
    """An answer and the fields that are wanted -> the array of each."""
    by_name = {s.name: a for s, a in zip(batcher.model.outputs, answer.arrays, strict=True)}
    return [by_name[field.output] for field in fields]
