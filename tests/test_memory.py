"""Lack of memory is reported as such, and ends a run that would otherwise wait forever."""

import errno
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import torch
from google.api_core import exceptions

from cloud.errors import translate_errors
from common.errors import InputError, OutOfMemory
from common.memory import ADVICE, imported, is_of_memory, settled
from model_handlers.devices.pass_size import PassSize
from model_handlers.loaded_model import LoadedModel
from model_handlers.model_errors import as_model_error
from model_handlers.package import main as package_main
from model_handlers.run_model import run_model
from pipelines.command import as_known_error
from resources.__main__ import main as resources_main
from serving.__main__ import main as serving_main
from transforms.dead_letters import Fault
from transforms.files.columns import Columns
from transforms.files.ranges import FileRange
from transforms.files.read_range import read_range
from transforms.files.text_lines import open_text
from transforms.json_rows.row_format import RowFormat
from transforms.messages.arrow import read_arrow
from transforms.messages.avro import read_binary

Make = Callable[..., Any]
OF_MEMORY = [
    MemoryError(),
    pa.ArrowMemoryError("malloc of size 64 failed"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    RuntimeError("std::bad_alloc"),
    ImportError("libtorch_cuda.so: failed to map segment from shared object"),
]


@pytest.mark.parametrize("error", OF_MEMORY, ids=str)
def test_lack_of_memory_is_recognized_in_every_form(error: Exception) -> None:
    assert is_of_memory(error)
    # A worker reports it as the text of a traceback.
    text = f"Traceback:\n{type(error).__name__}: {error} [while running 'Read']"
    for raised in (error, RuntimeError(text)):
        found = as_known_error(raised)
        assert isinstance(found, OutOfMemory)
        assert str(found).startswith("out of memory: ")
        assert str(found).endswith(ADVICE)
        assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), RuntimeError("size mismatch"), ValueError("memory")],
    ids=str,
)
def test_other_errors_do_not_count_as_lack_of_memory(error: Exception) -> None:
    assert not is_of_memory(error)
    assert not isinstance(as_known_error(error), OutOfMemory)


@pytest.mark.parametrize("error", OF_MEMORY[1:3], ids=str)
def test_a_file_is_not_blamed_for_lack_of_memory(
    make_manifest: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(dict.fromkeys("abc", np.arange(3.0))), path)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    part = FileRange(path=str(path), format="parquet", start=0, stop=1, first_row=0, rows=3)
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
def test_a_run_that_waits_for_a_dead_thread_ends(how: str) -> None:
    code = WAITS.format(how=HOWS[how])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: out of memory: ")
    assert f"{ADVICE} [see docs/operate/out-of-memory.md" in lines[-1]


def test_a_thread_that_fails_for_another_reason_does_not_end_the_run() -> None:
    how = "threading.Thread(target=lambda: 1 / 0).start()\nprint(threading.active_count())"
    code = WAITS.format(how=how).replace("threading.Event().wait()", "")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr


def test_a_thread_that_loses_its_connection_prints_nothing() -> None:
    how = """
import grpc
def lose():
    raise grpc.RpcError("Stream removed (Socket closed)")
thread = threading.Thread(target=lose)
thread.start()
thread.join()
"""
    code = WAITS.format(how=how).replace("threading.Event().wait()", "")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_watch_survives_threads_that_fail_for_another_reason() -> None:
    how = """
from concurrent.futures import ThreadPoolExecutor
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
try:
    ThreadPoolExecutor(1).submit(fail).result()
except MemoryError:
    pass
try:
    thread.start()
except RuntimeError:
    pass
logging.getLogger("grpc._server").error("no exception")
threading.Event().wait(1)
print("alive")
"""
    code = WAITS.format(how=how).replace("threading.Event().wait()", "")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")


# Lack of memory that was once reported as another error


def test_a_worker_that_the_system_killed_is_reported_with_the_usual_cause() -> None:
    message = str(as_known_error(RuntimeError("Channel closed prematurely.")))
    assert message.startswith("a worker process ended unexpectedly")
    assert "memory" in message
    assert message.endswith(ADVICE)


@pytest.mark.parametrize("error", OF_MEMORY[1:], ids=str)
def test_a_model_is_not_blamed_for_lack_of_memory(error: Exception) -> None:
    with pytest.raises((OutOfMemory, MemoryError)), as_model_error("model m cannot be loaded"):
        raise error


@pytest.mark.parametrize("text", ["std::bad_alloc", "can't allocate memory: you tried 8 bytes"])
def test_a_row_is_not_blamed_for_lack_of_memory(
    make_manifest: Make, text: str, tmp_path: Path
) -> None:
    def module(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(text)

    manifest = make_manifest()
    model = LoadedModel(
        module=module,
        manifest=manifest,
        outputs=manifest.outputs,
        device=torch.device("cpu"),
        size=PassSize(4),
    )
    with pytest.raises(MemoryError, match="this worker has too little memory for one row"):
        run_model(model, [np.zeros((4, 3), np.float32)], 4)


def test_a_message_is_not_blamed_for_lack_of_memory(
    make_manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(size: int) -> Any:
        def read(*_: Any) -> Any:
            raise pa.ArrowMemoryError(f"malloc of size {size} failed")

        return read

    row_format = RowFormat(make_manifest())
    monkeypatch.setattr(pa.ipc, "open_stream", fail(64))
    with pytest.raises(OutOfMemory, match="Arrow"):
        read_arrow(b"", "id", row_format, 1_000)
    # A message that claims an impossible size is itself at fault.
    monkeypatch.setattr(pa.ipc, "open_stream", fail(1 << 50))
    found = read_arrow(b"", "id", row_format, 1_000)
    assert isinstance(found, Fault)
    assert found.reason == "invalid_arrow"
    monkeypatch.setattr(fastavro, "schemaless_reader", fail_with_memory)
    with pytest.raises(OutOfMemory, match="Avro"):
        read_binary(b"", {}, None)


def fail_with_memory(*_: Any) -> Any:
    raise MemoryError


def test_an_arrow_message_that_claims_too_many_bytes_is_a_dead_letter(
    make_manifest: Make,
) -> None:
    columns = dict.fromkeys("abc", np.zeros(1_000, np.float64))
    table, sink = pa.table(columns), pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    # The uncompressed length precedes each compressed buffer.
    length = (8_000).to_bytes(8, "little")
    assert length in body
    claim = body.replace(length, (1 << 50).to_bytes(8, "little"))
    found = read_arrow(claim, "id", RowFormat(make_manifest()), 1 << 20)
    assert isinstance(found, Fault)


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("[Errno 12] Cannot allocate memory"),
        exceptions.ResourceExhausted("failed to allocate: out of memory"),
    ],
    ids=str,
)
def test_a_service_is_not_blamed_for_lack_of_memory(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match="table t cannot be read"):  # noqa: SIM117
        with translate_errors(InputError, "table t cannot be read"):
            raise error


def test_lack_of_memory_in_a_service_is_an_error_of_the_service() -> None:
    error = exceptions.BadRequest("Resources exceeded: not enough memory for the query")
    with (
        pytest.raises(InputError, match="not enough memory"),
        translate_errors(InputError, "query"),
    ):
        raise error


@pytest.mark.parametrize("command", [package_main, resources_main, serving_main])
def test_commands_report_lack_of_memory_in_one_line(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model_handlers.package.make_package", fail_with_memory)
    monkeypatch.setattr("resources.flags.parse_arguments", fail_with_memory)
    monkeypatch.setattr("serving.__main__.run", fail_with_memory)
    flags = ["m.pt", "--feature_columns", "a", "--output", "o"] if command is package_main else []
    assert command(flags) == 1
    printed = capsys.readouterr().err
    assert printed == (
        "error: out of memory: MemoryError; allow this process more memory "
        "[see docs/operate/out-of-memory.md, or run: python -m millrace explain out-of-memory]\n"
    )


def test_the_collector_skips_imported_modules_until_the_block_ends() -> None:
    gc.unfreeze()
    try:
        with imported("common.memory") as module:
            assert module.imported is imported
            assert gc.isenabled()
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()


def test_the_collector_skips_what_a_settled_process_holds() -> None:
    gc.unfreeze()
    try:
        held = [[number] for number in range(100)]
        with settled():
            assert not [one for one in gc.get_objects() if one is held]
            assert gc.get_freeze_count() > len(held)
        assert gc.get_freeze_count() == 0
        assert [one for one in gc.get_objects() if one is held]
    finally:
        gc.freeze()
    with settled():
        pass
    # As it was frozen before.
    assert gc.get_freeze_count() > 0


def test_objects_that_were_frozen_before_an_import_stay_frozen() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with imported("common.memory"):
        pass
    # Other threads may free some of them. Unfreezing leaves none.
    assert gc.get_freeze_count() > before // 2 > 0


def test_the_collector_works_after_an_import_that_failed() -> None:
    with pytest.raises(ModuleNotFoundError), imported("common.no_such_module"):
        pass
    assert gc.isenabled()
