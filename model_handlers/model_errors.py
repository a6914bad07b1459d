"""What foreign code raises when it reads a model, as the errors of this project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import MillraceError, ModelError, one_line
from common.memory import check_memory


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """What cannot be done -> any foreign exception in the block raised as a ModelError of one line.

    Filesystems, zip and torch's loaders answer damaged or foreign bytes with exceptions
    of many kinds. MemoryError passes: it says nothing about the model. Raises OutOfMemory where
    another exception tells of it.
    """
    try:
        yield
    except (MillraceError, MemoryError):
        raise
    except Exception as error:
        check_memory(error, what)
        raise ModelError(f"{what}: {one_line(error)}") from error
