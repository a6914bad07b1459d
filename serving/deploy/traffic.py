"""Shares of an endpoint's traffic, in whole percent by the id of a deployed model."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UsageError

Split = dict[str, int]


def scale(split: Mapping[str, int], total: int) -> Split:
    """Shares, what they are to add up to -> the same in proportion; those of nothing left out.

    What rounding leaves goes to the largest remainders, so the sum is exact.
    """
    whole = sum(split.values())
    if not whole:
        return {}
    shares = {ident: share * total // whole for ident, share in split.items()}
    remainders = sorted(split, key=lambda ident: -(split[ident] * total % whole))
    for ident in remainders[: total - sum(shares.values())]:
        shares[ident] += 1
    return {ident: share for ident, share in shares.items() if share}


def give(split: Mapping[str, int], ident: str, percent: int) -> Split:
    """Shares, a model and its new share -> all shares; the others keep their proportions.

    Raises UsageError where nobody is there to take the rest.
    """
    others = {other: share for other, share in split.items() if other != ident and share}
    if percent < 100 and not others:
        raise UsageError(
            f"--traffic_percent {percent}: no other model of the endpoint takes the other "
            f"{100 - percent} %: leave the flag out"
        )
    return scale(others, 100 - percent) | ({ident: percent} if percent else {})


def without(split: Mapping[str, int], ident: str) -> Split:
    """Shares, a model -> those of the others when it is gone; empty where it was the last."""
    return scale({other: share for other, share in split.items() if other != ident}, 100)
