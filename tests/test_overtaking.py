"""Concurrent attempts at a run in a bucket: one puts its result in place, the other reports it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests
from apache_beam.internal.gcp import auth
from attempts_by_hand import (
    FIRST,
    ONE,
    SECOND,
    THIRD,
    TWO,
    Attempt,
    Bucket,
    Layout,
    Steps,
    bare,
    read,
    shown,
)
from google.api_core import exceptions
from google.cloud import storage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property_tests import examples

from common.errors import OutputError
from examples.local_cloud import PROJECT, LocalCloud
from pipelines.batch_local import COMMAND
from pipelines.command import main
from transforms.files.store import read_version, replace
from transforms.results import open_result

ROWS = 2_000  # of the fixture `example`


@pytest.fixture
def cloud(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    """The emulators, configured for Beam and for runs."""
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return emulators


@pytest.fixture
def place(cloud: LocalCloud, tmp_path: Path) -> Bucket:
    return Bucket(f"gs://bucket/{tmp_path.name}", cloud)


@pytest.fixture
def blob(cloud: LocalCloud, tmp_path: Path) -> storage.Blob:
    """An object that does not exist yet."""
    return cloud.cloud.storage().bucket("bucket").blob(f"{tmp_path.name}/an object")


def test_a_write_conditional_on_another_generation_is_refused(blob: storage.Blob) -> None:
    blob.upload_from_string(b"1", if_generation_match=0)
    first = blob.generation
    for wrong in (0, first - 1):
        with pytest.raises(exceptions.PreconditionFailed):
            blob.upload_from_string(b"2", if_generation_match=wrong)
        with pytest.raises(exceptions.PreconditionFailed):
            blob.bucket.blob(blob.name).delete(if_generation_match=first - 1)
    assert blob.bucket.blob(blob.name).download_as_bytes() == b"1"
    blob.upload_from_string(b"3", if_generation_match=first)
    assert blob.generation != first
    with pytest.raises(exceptions.NotFound):
        blob.bucket.blob(blob.name, generation=first).download_as_bytes()
    assert blob.bucket.blob(blob.name).download_as_bytes() == b"3"


def test_a_file_that_was_written_after_it_was_read_is_not_replaced(
    place: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{place.root}/report.json"
    place.write(path, b"1")
    before = read_version(path)
    # This also holds if the other write follows the last comparison.
    monkeypatch.setattr("transforms.files.store.read_version", lambda _: before)
    place.write(path, b"2")
    assert not replace(path, b"3", before, "unused")
    monkeypatch.undo()


def test_a_file_that_is_constantly_replaced_always_exists(place: Bucket) -> None:
    path = f"{place.root}/report.json"
    place.write(path, b"0")
    steps = Steps()
    steps.look = lambda: place.write(path, f"{steps.count + 1}".encode())
    with place.steps(steps):
        found = read_version(path)
    assert found.content == f"{steps.count}".encode()
    assert found == read_version(path)
    assert replace(path, b"a", found, "unused")


@dataclass
class Turns:
    """Two threads whose requests to the servers are executed one at a time.

    order: whose request is next, 0 or 1. Once that thread or the list has ended, requests are
    executed as they arrive.
    """

    order: list[int]
    threads: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    moved: threading.Condition = field(default_factory=threading.Condition)
    taken: list[int] = field(default_factory=list)

    def run(self, me: int, action: Callable[[], None]) -> OutputError | None:
        self.threads[threading.get_ident()] = me
        try:
            action()
        except OutputError as error:
            return error
        finally:
            with self.moved:
                self.ended.add(me)
                self.moved.notify_all()
        return None

    def _next(self) -> int | None:
        while self.order and self.order[0] in self.ended:
            self.order.pop(0)
        return self.order[0] if self.order else None

    @contextmanager
    def taking(self) -> Iterator[None]:
        send = requests.Session.send

        def request(*args: Any, **kwargs: Any) -> Any:
            me = self.threads.get(threading.get_ident())
            if me is None:
                return send(*args, **kwargs)
            with self.moved:
                self.moved.wait_for(lambda: self._next() in (None, me))
                self.order[:1] = []
                self.taken.append(me)
                try:
                    return send(*args, **kwargs)
                finally:
                    self.moved.notify_all()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requests.Session, "send", request)
            yield


def pair(place: Bucket, layout: Layout) -> list[Attempt]:
    return [Attempt(place, layout, FIRST, 2, 1), Attempt(place, layout, SECOND, 1, 2)]


def race(attempts: list[Attempt], order: list[int]) -> Turns:
    """Let two attempts commit, with their requests in an order; return who made the requests."""
    place, layout = attempts[0].place, attempts[0].layout
    staged = [attempt.stage() for attempt in attempts]
    turns = Turns(order)
    with turns.taking(), ThreadPoolExecutor(2) as threads:
        running = [
            threads.submit(turns.run, i, lambda i=i: attempts[i].commit(staged[i]))  # type: ignore[misc]
            for i in range(2)
        ]
        errors = [future.result() for future in running]
    lost = [error for error in errors if error is not None]
    assert len(lost) < 2
    for error in lost:
        assert "\n" not in str(error)
        assert "another attempt at run r has finished first, and its result in " in str(error)
    # If both succeeded, one has replaced the result of the other.
    complete = [a for a, error in zip(attempts, errors, strict=True) if error is None]
    found = read(place)
    (winner,) = [attempt for attempt in complete if attempt.rows == found]
    later = {a.token for a in attempts} if layout == TWO else set()
    assert bare(place, layout) <= {winner.token} | later
    return turns


# Each case tests every other request, because a pair of attempts takes a second.
@pytest.mark.parametrize(("layout", "earlier", "start"), [(ONE, True, 0), (TWO, False, 1)])
def test_an_attempt_overtaken_between_any_two_requests_fails_or_is_replaced(
    place: Bucket, layout: Layout, earlier: bool, start: int
) -> None:
    outcomes = set()
    for at in range(start, 200, 2):
        here = Bucket(f"{place.root}/{at}", place.servers)
        if earlier:
            before = Attempt(here, layout, "cccccccc", 1, 1)
            before.commit(before.stage())
        taken = race(pair(here, layout), [0] * at + [1] * 200).taken
        outcomes.add(read(here)[0][0] // 1000)
        if 1 not in taken[: len(taken) - 1 - taken[::-1].index(0)]:
            break
    assert at > 15
    # Each attempt succeeds in some cases, depending on where the other overtook it.
    assert len(outcomes) == 2 or not earlier


# The second attempt runs between any two requests of the first one.
@pytest.mark.parametrize("pages", [(False, True), (True, False)])
def test_the_page_is_that_of_the_report_wherever_an_attempt_is_overtaken(
    place: Bucket, pages: tuple[bool, bool]
) -> None:
    for at in range(1, 200):
        here = Bucket(f"{place.root}/{at}", place.servers)
        before = Attempt(here, ONE, THIRD, 0, 1, page=True)
        before.commit(before.stage())
        tokens = zip((FIRST, SECOND), pages, strict=True)
        attempts = [Attempt(here, ONE, token, 0, 1, page=page) for token, page in tokens]
        taken = race(attempts, [0] * at + [1] * 200).taken
        attempt, name, page = shown(here)
        has_page = dict(zip((FIRST, SECOND), pages, strict=True))[attempt]
        assert (name, page) == (("report.html", attempt) if has_page else (None, None))
        if 1 not in taken[: len(taken) - 1 - taken[::-1].index(0)]:
            break
    assert at > 10


@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 1), max_size=60), layout=st.sampled_from([ONE, TWO]))
def test_however_two_attempts_interleave_a_reader_finds_one_whole_result(
    place: Bucket, order: list[int], layout: Layout
) -> None:
    here = Bucket(f"{place.root}/{os.urandom(4).hex()}", place.servers)
    race(pair(here, layout), order)


def batch(example: Path, **flags: object) -> list[str]:
    """Return the arguments of batch_local as run r, with more flags."""
    given: dict[str, object] = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "id_column": "transaction_id",
        "run_id": "r",
        "billing_project": PROJECT,
        "retry_seconds": 5,
        "direct_num_workers": 1,
    }
    return [text for name, value in (given | flags).items() for text in (f"--{name}", str(value))]


def overtaken(cloud: LocalCloud, late: list[str], other: list[str], moment: str = "report") -> int:
    """Let another run overtake a late one; return the exit code of the late run.

    The other run is executed completely when the late one is about to write its report, or to
    put files in place, which happens before its rows are loaded into a table.
    """
    send, done = requests.Session.send, threading.Event()

    def request(self: Any, prepared: Any, **kwargs: Any) -> Any:
        body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
        body = body if isinstance(body, bytes) else b""
        is_report = prepared.method == "POST" and b'"balanced": true' in body
        # Files are copied in batch requests, whose body names the calls.
        is_now = is_report if moment == "report" else b"/copyTo/" in body
        if is_now and not done.is_set():
            done.set()
            command = [sys.executable, "-m", "pipelines.batch_local", *other]
            subprocess.run(command, env=cloud.environ(), capture_output=True, check=True)
        return send(self, prepared, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "send", request)
        code = main(COMMAND, late)
    assert done.is_set(), code
    return code


def test_an_overtaken_run_fails_with_one_line_and_keeps_the_result_of_the_other(
    cloud: LocalCloud, place: Bucket, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = batch(example, output_files=f"{place.root}/out")
    assert overtaken(cloud, command, command) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "another attempt at run r has finished first, and its result in " in err
    scores = open_result(f"{place.root}/out/r").to_table()
    assert len(set(scores["row_id"].to_pylist())) == ROWS - ROWS // 100
    assert len({name for name in place.names() if "/scores/part-" in name}) == len(
        open_result(f"{place.root}/out/r").files
    )


@pytest.mark.parametrize("moment", ["table", "report"])
def test_an_overtaken_run_says_that_a_table_may_hold_its_rows(
    cloud: LocalCloud,
    place: Bucket,
    dataset: str,
    example: Path,
    capsys: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    few = place.root.removeprefix("gs://bucket/")
    source = example.parent / f"{few}.parquet"
    pq.write_table(pq.read_table(example / "transactions.parquet").slice(0, 100), source)
    flags = {
        "output_files": f"{place.root}/out",
        "output_table": f"{dataset}.scores",
        "temp_location": f"{place.root}/tmp",
    }
    # The other run has different rows from the late one.
    other = batch(example, **flags | {"input_files": source})
    assert overtaken(cloud, batch(example, **flags), other, moment) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "another attempt at run r has finished first, and its result in " in err
    file_errors = (
        f"but {dataset}.scores may hold the rows of this attempt instead: run the command again"
    )
    assert (file_errors in err) is (moment == "report")
    count = f"SELECT COUNT(*) AS n, COUNT(DISTINCT row_id) AS d FROM `{dataset}.scores`"
    (found,) = cloud.cloud.bigquery().query(count).result()
    # All rows belong to the other run, which was the last to write the table and the report.
    assert found["n"] == found["d"] == open_result(f"{place.root}/out/r").count_rows()
    assert 90 < found["n"] <= 100
    # As the message advises, running the command again makes table and report agree.
    assert main(COMMAND, batch(example, **flags)) == 0
    (found,) = cloud.cloud.bigquery().query(count).result()
    assert open_result(f"{place.root}/out/r").count_rows() == found["n"] == ROWS - ROWS // 100
