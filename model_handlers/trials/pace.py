"""How many rows a second a model scores on this machine."""

from __future__ import annotations

import time

import numpy as np

from model_handlers.loaded_model import LoadedModel
from model_handlers.preparation import golden_tensors
from model_handlers.trials.try_rows import made_up_rows

# In seconds. A forward pass that takes this long is measured well enough.
ENOUGH_SECONDS = 0.1


def rows_a_second(model: LoadedModel) -> float:
    """Return how many rows a second a model scores in forward passes of one thread.

    It scores its known-good rows, or random rows if it has none, repeated to larger and larger
    batches until one takes long enough.

    Args:
        model: The loaded model.
    """
    golden = model.manifest.golden
    if golden is None:
        arrays = made_up_rows(model.manifest)
    else:
        arrays = golden_tensors(model.manifest, golden, model.preparation)
    count = len(arrays[0])
    model.forward(arrays, slice(0, count))
    while True:
        started = time.perf_counter()
        model.forward(arrays, slice(0, count))
        seconds = time.perf_counter() - started
        if seconds >= ENOUGH_SECONDS or count >= model.batch_rows:
            return count / max(seconds, 1e-9)
        times = -(-min(count * 4, model.batch_rows) // count)
        arrays = [np.concatenate([array] * times)[: model.batch_rows] for array in arrays]
        count = len(arrays[0])
