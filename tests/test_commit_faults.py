"""Readers find the old result or the new one, wherever a commit is stopped or observed."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from apache_beam.internal.gcp import auth
from attempts_by_hand import (
    FIRST,
    ONE,
    SECOND,
    THIRD,
    TWO,
    Attempt,
    Bucket,
    Disk,
    Killed,
    Layout,
    Place,
    Steps,
    bare,
    read,
    staged_by,
)
from hypothesis import given
from hypothesis import strategies as st
from property_tests import thinned

from common.errors import OutputError
from examples.local_cloud import LocalCloud
from transforms.files.sink.commit import abandon
from transforms.files.sink.run_folder import StagedFile


@pytest.fixture(scope="module")
def bucket(emulators: LocalCloud) -> Iterator[LocalCloud]:
    """The storage emulator, configured for Beam."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulators.endpoints.storage or "")
        patch.setattr(auth._Credentials, "_credentials_init", True)
        yield emulators


@pytest.fixture(params=["disk", "emulators"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """Return an empty place with a name."""
    if request.param == "disk":
        return lambda name: Disk(str(tmp_path / name))
    servers = request.getfixturevalue("bucket")
    return lambda name: Bucket(f"gs://bucket/{tmp_path.name}/{name}", servers)


def through_all_steps(most: int) -> Iterator[int]:
    yield from range(1, most)
    raise AssertionError("the commit never ended")


@pytest.mark.parametrize(
    ("place", "layout", "done"),
    [("disk", layout, done) for layout in (ONE, TWO) for done in (False, True)]
    + [("emulators", ONE, True), ("emulators", TWO, False)],
    indirect=["place"],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_commit_killed_at_any_step_leaves_the_old_result_or_the_new_one(
    place: Callable[[str], Place], layout: Layout, done: bool
) -> None:
    slow = isinstance(place("new"), Bucket)
    taken = thinned(range(1, 400))
    for at in through_all_steps(400):
        # In a bucket, each of the four cases tests every fourth step, and all cases different ones.
        if at % 4 != (0 if layout == ONE else 1) + 2 * done if slow else at not in taken:
            continue
        here = place(f"at{at}")
        old, new = Attempt(here, layout, FIRST, 2, 1), Attempt(here, layout, SECOND, 1, 1)
        old.commit(old.stage())
        files = new.stage()
        steps = Steps(at, done)
        with here.steps(steps), suppress(Killed):
            new.commit(files)
        assert read(here) in (old.rows, new.rows)
        if not steps.takes_place():
            assert at > 15
            break
        # Either the runner retries the step, or the user reruns the run.
        again = ("step", "run")[(at // 4 if slow else at + done) % 2]
        if again == "run":
            new.die()
            new = Attempt(here, layout, THIRD, 1, 3)
            files = new.stage()
        new.commit(files)
        assert read(here) == new.rows
        # In a bucket, files that a killed attempt staged or put in a folder without a report are
        # removed a day later.
        later = {SECOND} if isinstance(here, Bucket) and again == "run" else set()
        assert staged_by(here) <= later
        assert bare(here, layout) <= {new.token} | (later if layout == TWO else set())


@pytest.mark.slow
def test_a_reader_between_any_two_steps_finds_the_old_result_or_the_new_one(
    place: Callable[[str], Place],
) -> None:
    here, seen = place("out"), []
    old, new = Attempt(here, TWO, FIRST, 2, 1), Attempt(here, TWO, SECOND, 1, 1)
    old.commit(old.stage())
    files = new.stage()
    steps = Steps(look=lambda: seen.append(read(here)))
    with here.steps(steps):
        new.commit(files)
    assert steps.count == len(seen) > 15
    assert all(found in (old.rows, new.rows) for found in seen)
    # Once the new result was found, it is always found.
    assert seen == sorted(seen, key=lambda found: found == new.rows)


def test_a_reader_between_any_two_steps_finds_the_first_result_or_no_result(
    place: Callable[[str], Place],
) -> None:
    here, seen = place("new"), []

    def look() -> None:
        with suppress(Exception):
            seen.append(read(here))

    new = Attempt(here, ONE, SECOND, 2, 1)
    files = new.stage()
    steps = Steps(look=look)
    with here.steps(steps):
        new.commit(files)
    assert steps.count > len(seen) > 0
    assert all(found == new.rows for found in seen)


@given(data=st.data())
@pytest.mark.slow
def test_after_any_sequence_of_attempts_the_report_lists_existing_files(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any number of attempts are killed at any step, abandoned or repeated, in any order."""
    place = Disk(str(tmp_path_factory.mktemp("runs")))
    complete: list[tuple[list[int], list[int]]] = []
    waiting: list[tuple[Attempt, list[StagedFile]]] = []
    for i in range(data.draw(st.integers(1, 6))):
        repeats = data.draw(st.booleans())
        if waiting and repeats:
            attempt, files = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        else:
            layout = data.draw(st.sampled_from([ONE, TWO]))
            sizes = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
            attempt = Attempt(place, layout, "abcdef"[i] * 8, *sizes)
            files = attempt.stage()
        before = read(place) if complete else None
        steps = Steps(data.draw(st.integers(1, 120)), data.draw(st.booleans()))
        with place.steps(steps), suppress(Killed, OutputError):
            attempt.commit(files)
        fate = data.draw(st.sampled_from(["dies", "waits", "gives up"]))
        if fate == "gives up":
            abandon(attempt.destinations, attempt.folder("out"))
        elif fate == "dies":
            attempt.die()
        else:
            waiting.append((attempt, files))
        if before is None and not (Path(place.root) / "out/r/report.json").exists():
            continue
        assert read(place) in ([attempt.rows] if before is None else [before, attempt.rows])
        complete.append(read(place))
    for attempt, _ in waiting:
        attempt.die()
    last = Attempt(place, ONE, "99999999", 2, 2)
    last.commit(last.stage())
    assert read(place) == last.rows
    assert bare(place, ONE) == {last.token}
