"""The traffic split of an endpoint: whole percentages by the id of a deployed model."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UsageError

Split = dict[str, int]


def scale(split: Mapping[str, int], total: int) -> Split:
    """Scale shares to a new total, and leave out shares of 0.

    The shares are rounded down. The rest goes to the largest remainders, so the sum is exact.

    Args:
        split: The shares in percent, by the id of a deployed model.
        total: The new sum of the shares, in percent.
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
    """Set the share of one model; the other models keep their proportions.

    Args:
        split: The shares in percent, by the id of a deployed model.
        ident: The id of the model.
        percent: Its new share, 0 to 100.

    Returns:
        The new shares of all models, without shares of 0.

    Raises:
        UsageError: If no other model has traffic and could take the rest.

    Example:
        >>> give({"old": 100}, "new", 10)
        {'old': 90, 'new': 10}
    """
    others = {other: share for other, share in split.items() if other != ident and share}
    if percent < 100 and not others:
        raise UsageError(
            f"--traffic_percent {percent}: no other model of the endpoint has traffic, so none can "
            f"take the remaining {100 - percent} %: leave out --traffic_percent"
        )
    return scale(others, 100 - percent) | ({ident: percent} if percent else {})


def without(split: Mapping[str, int], ident: str) -> Split:
    """Return the shares after a model is removed; empty if no other model has traffic.

    Args:
        split: The shares in percent, by the id of a deployed model.
        ident: The id of the deployed model that is removed.
    """
    return scale({other: share for other, share in split.items() if other != ident}, 100)
