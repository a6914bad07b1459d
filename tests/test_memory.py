"""Lack of memory is reported as such, and ends a run that would wait for ever."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_handlers.errors import InputError, OutOfMemory
from model_handlers.memory import ADVICE, is_of_memory
from pipelines.command import explain
from transforms.file_ranges import FileRange
from transforms.read_files import Columns, read_range
from transforms.text_lines import open_text

Make = Callable[..., Any]
OF_MEMORY = [
    MemoryError(),
    pa.ArrowMemoryError("malloc of size 64 failed"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", OF_MEMORY, ids=str)
def test_lack_of_memory_is_known_in_every_form(error: Exception) -> None:
    assert is_of_memory(error)
    # As it comes from a worker, too: as the text of a traceback.
    text = f"Traceback:\n{type(error).__name__}: {error} [while running 'Read']"
    for raised in (error, RuntimeError(text)):
        found = explain(raised)
        assert isinstance(found, OutOfMemory)
        assert str(found).startswith("out of memory: ")
        assert str(found).endswith(ADVICE)
        assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), RuntimeError("size mismatch"), ValueError("memory")],
    ids=str,
)
def test_other_errors_are_not_of_memory(error: Exception) -> None:
    assert not is_of_memory(error)
    assert not isinstance(explain(error), OutOfMemory)


@pytest.mark.parametrize("error", OF_MEMORY[1:3], ids=str)
def test_a_file_is_not_blamed_for_lack_of_memory(
    make_manifest: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(dict.fromkeys("abc", np.arange(3.0))), path)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    part = FileRange(str(path), "parquet", 0, 1, 0, 3)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(OutOfMemory, match=r"rows\.parquet.*--batch_rows"):
        list(read_range(part, Columns(make_manifest()), 10))
    with pytest.raises(OutOfMemory, match=r"rows\.parquet.*--batch_rows"), open_text(str(path)):
        raise error
    other = pa.ArrowInvalid("not Parquet")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: iter([fail_with(other)]))
    with pytest.raises(InputError, match="is damaged"):
        list(read_range(part, Columns(make_manifest()), 10))


def fail_with(error: Exception) -> Any:
    raise error


WAITS = """
import logging, resource, threading
from pipelines.dead_threads import end_when_threads_fail
end_when_threads_fail(0.05)
def fail():
    raise MemoryError("of a thread")
{how}
threading.Event().wait()
"""
HOWS = {
    "a thread dies": "threading.Thread(target=fail).start()",
    "a handler of gRPC fails": """
try:
    fail()
except MemoryError:
    logging.getLogger("grpc._server").exception("Exception iterating responses")
""",
    "a thread cannot start": """
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, used))
try:
    threading.Thread(target=fail).start()
except RuntimeError:
    pass
""",
}


@pytest.mark.parametrize("how", HOWS)
def test_a_run_that_waits_for_a_thread_that_is_gone_ends(how: str) -> None:
    code = WAITS.format(how=HOWS[how])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: out of memory: ")
    assert lines[-1].endswith(ADVICE)


def test_a_thread_that_fails_otherwise_ends_nothing() -> None:
    how = "threading.Thread(target=lambda: 1 / 0).start()\nprint(threading.active_count())"
    code = WAITS.format(how=how).replace("threading.Event().wait()", "")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr
