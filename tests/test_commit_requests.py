"""A commit of many files to a bucket: its requests, and where it goes on after a failure."""

import json
from collections.abc import Iterator

import pytest
from apache_beam.internal.gcp import auth
from attempts_by_hand import FIRST, ONE, SECOND, THIRD, Attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from object_store import ObjectStore, serve
from property_tests import examples

import cloud.objects
from common.errors import AttemptConflict, OutputError
from transforms.files.sink.commit import abandon

FILES = 300


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, no_waits: list[float]) -> Iterator[ObjectStore]:
    """A bucket on a server that Beam uses."""
    found = ObjectStore()
    with serve(found) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
        # All tests have the same attempts.
        monkeypatch.setattr("transforms.files.sink.commit._abandoned", set())
        yield found


def listed(store: ObjectStore) -> list[str]:
    """Return the files that the report lists; check that they exist, with their sizes."""
    if "out/r/report.json" not in store.objects:
        return []
    report = json.loads(store.objects["out/r/report.json"][1])
    files = [file for part in report["files"].values() for file in part]
    for file in files:
        assert len(store.objects[f"out/r/{file['name']}"][1]) == file["bytes"]
    return sorted(f"out/r/{file['name']}" for file in files)


def others(store: ObjectStore) -> set[str]:
    """Return the objects that do not belong to the result."""
    return store.names() - set(listed(store)) - {"out/r/report.json"}


def attempt_of(files: list[str]) -> set[str]:
    return {name.rsplit("-", 1)[-1].split(".")[0] for name in files}


@pytest.mark.slow
def test_a_commit_takes_a_tenth_of_a_request_for_each_file(store: ObjectStore) -> None:
    attempt = Attempt(store, ONE, FIRST, FILES - 1, 1)
    files = attempt.stage()
    attempt.commit(files)
    assert len(listed(store)) == FILES
    assert others(store) == set()
    assert store.requests.total() <= FILES / 10
    # The next attempt also removes the files of the first.
    store.requests.clear()
    attempt = Attempt(store, ONE, SECOND, FILES - 1, 1)
    files = attempt.stage()
    attempt.commit(files)
    assert (attempt_of(listed(store)), others(store)) == ({SECOND}, set())
    assert store.requests.total() <= FILES / 10


@pytest.mark.slow
def test_a_report_names_files_that_were_removed_long_ago_once_for_each_attempt(
    store: ObjectStore,
) -> None:
    counts = []
    for token in ("aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"):
        attempt = Attempt(store, ONE, token, 5, 0)
        files = attempt.stage()
        attempt.commit(files)
        report = json.loads(store.objects["out/r/report.json"][1])
        counts.append(len(report["replaced"]))
    assert counts == [0, 5, 6, 7]
    # An attempt that was replaced twice still recognizes it.
    late = Attempt(store, ONE, "aaaaaaaa", 5, 0)
    files = late.stage()
    with pytest.raises(AttemptConflict, match="has finished first"):
        late.commit(files)
    assert attempt_of(listed(store)) == {"dddddddd"}


@pytest.mark.parametrize("overtaken", [False, True])
@pytest.mark.slow
def test_a_report_of_many_files_replaces_only_the_report_that_was_read(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    """Google's client announces an object of more than 8 MB first, and then sends it."""
    monkeypatch.setattr("google.cloud.storage.blob._MAX_MULTIPART_SIZE", 10)
    files = (first := Attempt(store, ONE, FIRST, 2, 1)).stage()
    first.commit(files)
    second = Attempt(store, ONE, SECOND, 3, 1)
    files = second.stage()
    report = "out/r/report.json"
    other = store.objects[report][1].replace(FIRST.encode(), THIRD.encode())

    def fault(kind: str, name: str) -> None:
        if overtaken and kind == "write" and store.objects[report][1] != other:
            store.put(report, other)

    store.fault = fault
    if not overtaken:
        second.commit(files)
        assert attempt_of(listed(store)) == {SECOND}
        return
    with pytest.raises(AttemptConflict, match="another attempt at run r has finished first"):
        second.commit(files)
    assert store.objects[report][1] == other


@pytest.mark.slow
def test_only_calls_that_failed_are_repeated(store: ObjectStore) -> None:
    attempt = Attempt(store, ONE, FIRST, 120, 0)
    files = attempt.stage()
    left = {"copy": 3, "delete": 2, "batch": 1, "list": 1}

    def fault(what: str, _: str) -> int | None:
        left[what] = left.get(what, 0) - 1
        return None if left[what] < 0 else 503

    store.fault = fault
    attempt.commit(files)
    assert (len(listed(store)), others(store)) == (120, set())
    kinds = [what for what, _ in store.calls]
    assert (kinds.count("copy"), kinds.count("delete")) == (120 + 3, 120 + 2)


@pytest.mark.slow
def test_a_step_that_is_repeated_copies_only_the_rest(store: ObjectStore) -> None:
    attempt = Attempt(store, ONE, FIRST, 250, 0)
    files = attempt.stage()
    last = max(file.path for file in files).removeprefix("gs://bucket/")
    store.fault = lambda what, name: 403 if what == "copy" and name.startswith(last) else None
    with pytest.raises(OutputError) as raised:
        attempt.commit(files)
    assert str(raised.value).count("\n") == 0
    assert str(raised.value).startswith("the output cannot be put in place: it is so; grant ")
    assert listed(store) == []
    placed = {name for name in store.names() if "/scores/" in name}
    assert len(placed) >= 99
    store.fault = lambda what, name: None
    store.calls.clear()
    attempt.commit(files)
    assert (len(listed(store)), others(store)) == (250, set())
    assert [what for what, _ in store.calls].count("copy") == 250 - len(placed)


# The first seven lists precede the report, and two follow it.
@pytest.mark.parametrize("at", [1, 5, 7, 8])
@pytest.mark.slow
def test_without_permission_to_list_in_mid_commit_no_half_result_is_visible(
    store: ObjectStore, at: int
) -> None:
    old, new = Attempt(store, ONE, FIRST, 2, 1), Attempt(store, ONE, SECOND, 1, 1)
    old.commit(old.stage())
    files, before = new.stage(), listed(store)
    store.calls.clear()

    def fault(what: str, _: str) -> int | None:
        lists = [kind for kind, _ in store.calls].count("list")
        return 403 if what == "list" and lists >= at else None

    store.fault = fault
    with pytest.raises(OutputError) as raised:
        new.commit(files)
    assert str(raised.value).count("\n") == 0
    assert "it is so; grant the account the missing role" in str(raised.value)
    abandon(new.destinations, new.folder("out"))
    assert (listed(store) == before) is (at < 8)
    assert attempt_of(listed(store)) == {FIRST if at < 8 else SECOND}


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(1, 60),
    calls=st.sampled_from([1, 2, 100]),
    status=st.sampled_from([403, 404]),
    passing=st.sets(st.integers(1, 60), max_size=3),
    again=st.booleans(),
)
@pytest.mark.slow
def test_wherever_a_commit_stops_a_repetition_ends_right(
    store: ObjectStore, at: int, calls: int, status: int, passing: set[int], again: bool
) -> None:
    """All calls from one on fail for good, those before it now and then."""
    store.objects.clear()
    old, new = Attempt(store, ONE, FIRST, 2, 1), Attempt(store, ONE, SECOND, 4, 2)
    old.commit(old.stage())
    files, before = new.stage(), listed(store)
    store.calls.clear()

    def fault(_what: str, _name: str) -> int | None:
        count = len(store.calls)
        return status if count >= at else 503 if count in passing else None

    with pytest.MonkeyPatch.context() as patch:
        # With few calls in a request, several threads send requests.
        patch.setattr(cloud.objects, "CALLS_A_REQUEST", calls)
        store.fault = fault
        error = None
        try:
            new.commit(files)
        except OutputError as raised:
            error = str(raised)
        store.fault = lambda what, name: None
        found = listed(store)
        assert found == before or attempt_of(found) == {SECOND}
        if error is None:
            assert attempt_of(found) == {SECOND}
        else:
            assert "\n" not in error
        if not again:
            new = Attempt(store, ONE, THIRD, 1, 3)
            files = new.stage()
        new.commit(files)
    assert (attempt_of(listed(store)), len(listed(store))) == (
        {new.token},
        new.scores + new.letters,
    )
    left = attempt_of([name for name in others(store) if "/.staging/" not in name])
    assert left == set()
