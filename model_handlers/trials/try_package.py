"""Try a model package in a process of its own, before it is uploaded or deployed.

Commands that only move a package import neither torch nor Beam. The process keeps both, the memory
of the model and a crash away from them.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from common.errors import DeviceError, ModelError, one_line
from common.memory import MORE_MEMORY, out_of_memory
from common.terminal import long_step
from model_handlers.model_errors import as_model_error


def try_package(path: str, trusted_modules: Sequence[str] = ()) -> None:
    """Load a model in another process, and score its known-good rows there.

    If this machine lacks what the model needs, such as a GPU, a warning is printed.

    Args:
        path: The path of the package, as read_package takes it. Of a model file without a
            manifest, only the file is checked.
        trusted_modules: The top-level modules that the package may import.

    Raises:
        ModelError: The model cannot be loaded, or does not do what its manifest says.
        OutOfMemory: This machine has too little memory for the model.
    """
    # A forked process would inherit the threads and connections of the command.
    context = multiprocessing.get_context("spawn")
    with long_step(f"trying model {path}"), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(_load, path, tuple(trusted_modules)).result()
        except DeviceError as error:
            print(f"warning: model {path} was not tried: {error}", file=sys.stderr)
        except MemoryError as error:
            raise out_of_memory(f"model {path}: {one_line(error)}", MORE_MEMORY) from error
        except BrokenProcessPool as error:
            raise ModelError(
                f"model {path}: the process that loaded it died: check that this machine has "
                "enough memory for the model, and package it again"
            ) from error


def _load(path: str, trusted_modules: tuple[str, ...]) -> None:
    """Load a model and check it, as a worker does."""
    warnings.simplefilter("ignore")
    with as_model_error(f"model {path} cannot be used"):
        from model_handlers.infer import load_draft
        from model_handlers.read_package import read_package
        from model_handlers.torch_model import TorchModelHandler

        package = read_package(path)
        if package.manifest is None:
            load_draft(package)
        else:
            handler = TorchModelHandler(path, package.manifest, trusted_modules=trusted_modules)
            handler.load_model()
