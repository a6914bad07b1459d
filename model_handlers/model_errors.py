"""Turn the exceptions of libraries that read models into errors of this project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import MillraceError, ModelError, one_line
from common.memory import check_memory


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Raise any foreign exception in the block as a ModelError of one line.

    Filesystems, zipfile and torch's loaders raise many kinds of exceptions for damaged or foreign
    bytes. A MemoryError passes through, because it says nothing about the model.

    Args:
        what: What failed, for example "model m.pt cannot be read". The message starts with it.

    Raises:
        ModelError: The block raised an exception of another library.
        OutOfMemory: Such an exception reports a lack of memory.
    """
    try:
        yield
    except (MillraceError, MemoryError):
        raise
    except Exception as error:
        check_memory(error, what)
        raise ModelError(f"{what}: {one_line(error)}") from error
