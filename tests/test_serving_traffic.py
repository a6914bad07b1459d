"""The shares of an endpoint's traffic are whole percentages that always add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from serving.deploy.traffic import Split, give, scale, without


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Draw shares that add up to 100."""
    cuts = sorted(draw(st.lists(st.integers(0, 100), max_size=4)))
    shares = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
    return {f"m{i}": share for i, share in enumerate(shares)}


@given(splits(), st.integers(0, 100))
def test_shares_keep_their_order_and_add_up(split: Split, total: int) -> None:
    scaled = scale(split, total)
    assert sum(scaled.values()) == total
    assert all(abs(scaled.get(m, 0) - share * total / 100) < 1 for m, share in split.items())
    for one, other in zip(split, list(split)[1:], strict=False):
        if split[one] > split[other]:
            assert scaled.get(one, 0) >= scaled.get(other, 0)


@given(splits(), st.integers(0, 100), st.sampled_from(["m0", "new"]))
def test_a_model_gets_its_share_and_the_others_the_rest(
    split: Split, percent: int, ident: str
) -> None:
    others = [m for m, share in split.items() if m != ident and share]
    if not others and percent < 100:
        with pytest.raises(UsageError, match="no other model"):
            give(split, ident, percent)
        return
    shares = give(split, ident, percent)
    assert shares.get(ident, 0) == percent
    assert sum(shares.values()) == 100
    assert 0 not in shares.values()


@given(splits())
def test_the_share_of_a_removed_model_goes_to_the_others(split: Split) -> None:
    shares = without(split, "m0")
    assert "m0" not in shares
    assert sum(shares.values()) == (100 if split["m0"] < 100 else 0)


def test_shares_of_two_and_three() -> None:
    assert give({"old": 100}, "new", 10) == {"old": 90, "new": 10}
    assert give({"a": 90, "b": 10}, "new", 50) == {"a": 45, "b": 5, "new": 50}
    assert give({"a": 1, "b": 1, "c": 98}, "a", 0) == {"b": 1, "c": 99}
    assert without({"a": 45, "b": 5, "c": 50}, "c") == {"a": 90, "b": 10}
