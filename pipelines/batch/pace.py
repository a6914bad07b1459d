"""What the choice of --spread_batches needs to know about the model and the workers of a run."""

from __future__ import annotations

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import MillraceError
from common.terminal import long_step
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trials.pace import rows_a_second
from pipelines.batch.spread import Scorer
from pipelines.beam_args import runs_in_process
from pipelines.config import Predictor
from pipelines.dataflow.worker_packages import names_accelerator
from pipelines.handlers import Handler
from pipelines.options import DeviceOptions
from pipelines.workers import worker_cpus

# The launcher does not load a larger model, in bytes, only to measure it.
MEASURED_BYTES = 256 << 20


def scorer_of(predictor: Predictor, handler: Handler, options: PipelineOptions) -> Scorer:
    """Return what is known about the scoring of a run before it starts.

    Args:
        predictor: The part of the flags that chooses how to predict.
        handler: The model handler of the run.
        options: Beam's options of the run.
    """
    in_process = runs_in_process(options)
    slow = None
    if not isinstance(predictor, DeviceOptions):
        slow = "an endpoint"
    elif not in_process and (predictor.device.startswith("cuda") or names_accelerator(options)):
        slow = "a GPU"
    return Scorer(
        cpus=worker_cpus(options),
        in_process=in_process,
        slow=slow,
        pace=lambda: measure(handler),
    )


def measure(handler: Handler) -> float | None:
    """Return how many rows a second a model scores on one CPU, measured with a few batches.

    Args:
        handler: The model handler of the run.

    Returns:
        The number, or None if the model is too large to be loaded only for this, or cannot be
        loaded here. A worker that cannot load it reports why.
    """
    if not isinstance(handler, TorchModelHandler) or _size(handler) > MEASURED_BYTES:
        return None
    try:
        with long_step("measuring how fast the model is"):
            return rows_a_second(handler.load_model())
    except MillraceError:
        return None


def _size(handler: TorchModelHandler) -> int:
    """Return the size of the model file in bytes, or 0 if it is not found."""
    paths = [handler.model, f"{handler.model.rstrip('/')}/{handler.manifest.file}"]
    try:
        found = FileSystems.match(paths)
    except BeamIOError:
        return 0
    return max((file.size_in_bytes for one in found for file in one.metadata_list), default=0)
