"""Lineages detect replays of the same dead letters, and can be stored as text."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.lineage import Lineage
from transforms.replay.letters import Letter, lineage_of

NOON = datetime.datetime(2024, 5, 6, 12, tzinfo=datetime.UTC)


def letter(
    run_id: str = "r", reason: str = "null", second: int = 0, pipeline: str = "batch_local"
) -> Letter:
    time = NOON + datetime.timedelta(seconds=second)
    return Letter(
        failed_at=time,
        run_id=run_id,
        pipeline=pipeline,
        stage="validate",
        reason=reason,
        row_id="id",
        payload=b"{}",
        attributes={},
        attempts=1,
    )


NULLS = [letter(second=1), letter(second=2)]
INFINITE = letter(reason="not_finite")
OTHER_RUN = letter("q")
OF_REPLAY = letter("a", pipeline="batch_replay")


@pytest.mark.parametrize(
    ("new", "earlier", "relation"),
    [
        (NULLS, NULLS, "covers"),
        ([*NULLS, INFINITE], NULLS, "covers"),
        (NULLS, [*NULLS, INFINITE], "overlaps"),
        (NULLS, [INFINITE], "apart"),
        (NULLS, [OTHER_RUN], "apart"),
        # Some letters were deleted meanwhile, which the number and the times show.
        (NULLS[:1], NULLS, "overlaps"),
        ([NULLS[1], letter(second=3)], NULLS, "overlaps"),
        # The stream continued, and only newer letters are replayed.
        ([letter(second=3), letter(second=4)], NULLS, "apart"),
        # The letters of a replay belong to rows of its source.
        (NULLS, [OF_REPLAY], "overlaps"),
        ([OF_REPLAY], NULLS, "overlaps"),
        ([*NULLS, OF_REPLAY], [OF_REPLAY], "covers"),
    ],
)
def test_replays_of_the_same_letters_are_detected(
    new: list[Letter], earlier: list[Letter], relation: str
) -> None:
    assert lineage_of("new", new).to(lineage_of("earlier", earlier)) == relation


def test_deleted_letters_of_a_replay_count_as_covered_if_their_origins_are() -> None:
    first = lineage_of("a", NULLS)
    second = lineage_of("b", [*NULLS, OF_REPLAY])
    assert lineage_of("c", NULLS).to(second) == "overlaps"
    assert lineage_of("c", NULLS).to(second, {"a": first}) == "covers"
    assert lineage_of("c", NULLS[:1]).to(second, {"a": first}) == "overlaps"
    # Two replays used the letters of each other, one after the other.
    known = {"a": lineage_of("a", [letter("b", pipeline="batch_replay")]), "b": second}
    assert lineage_of("c", NULLS).to(second, known) == "overlaps"


LETTERS = st.lists(
    st.builds(
        letter,
        st.sampled_from("rqa"),
        st.sampled_from(["null", "not_finite"]),
        st.integers(0, 9),
        st.sampled_from(["batch_local", "batch_replay"]),
    ),
    min_size=1,
)


@given(LETTERS, LETTERS)
def test_replays_that_share_a_letter_are_not_apart(one: list[Letter], other: list[Letter]) -> None:
    shared = lineage_of("a", [*one, *other])
    for part in (one, other):
        assert shared.to(lineage_of("b", part)) == "covers"
        assert lineage_of("b", part).to(shared) != "apart"


@given(LETTERS)
def test_a_lineage_is_restored_from_its_text(letters: list[Letter]) -> None:
    lineage = lineage_of('an "id"', letters)
    assert Lineage.from_text(lineage.to_text()) == lineage
    assert lineage.runs == tuple(sorted({one.run_id for one in letters}))
