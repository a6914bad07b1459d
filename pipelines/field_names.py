"""The names of fields in --id_column and --output_fields, compared with those that rows have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from common.errors import UsageError, similar, suggest
from model_handlers.manifests.manifest import Manifest

_SHOWN = 40


def named_by_user(
    manifest: Manifest, id_column: str | None, source: Sequence[str]
) -> dict[str, str]:
    """Return the names that rows are expected to have because flags name them, and the flags.

    Features are left out: a row may have them in a list, and one without them is a dead letter.

    Args:
        manifest: The manifest of the model.
        id_column: The value of --id_column.
        source: The columns of the source among --output_fields.
    """
    flags = {name: "output_fields" for name in source if name not in manifest.features}
    return flags | ({} if id_column is None else {id_column: "id_column"})


def check_name(
    name: str, flag: str, found: Collection[str], place: str, results: Collection[str] = ()
) -> str:
    """Check that a name is one of those that rows show.

    Args:
        name: The name.
        flag: The flag that names it.
        found: The names that the rows have.
        place: What the rows are, for the message.
        results: The outputs and fields of the model, of which the name may be a misspelling.

    Returns:
        A warning if the rows lack the name but it is not misspelt; otherwise an empty text.

    Raises:
        UsageError: The rows lack the name, and it is the id or resembles one that exists.
    """
    if name in found:
        return ""
    lacks = f"--{flag}: none of {place} has {name!r}"
    have = f"they have {', '.join([*found][:_SHOWN])}"
    known = found if flag == "id_column" else [*found, *results]
    if flag == "id_column" or any(_stem(name) != _stem(near) for near in similar(name, known)):
        raise UsageError(f"{lacks}{suggest(name, known)}; {have}")
    return f"warning: {lacks}: the field is null in every row without it; {have}"


def _stem(name: str) -> str:
    """Return a name without digits: names of a numbered series are not misspellings."""
    return re.sub(r"\d", "", name)


def check_known(names: Mapping[str, str], known: Collection[str], place: str) -> None:
    """Raise UsageError for a name that does not exist, where all names are known.

    Args:
        names: The names, and the flag that names each.
        known: The names that exist.
        place: What has these names, for the message.
    """
    for name, flag in names.items():
        if name not in known:
            raise UsageError(
                f"--{flag}: {place} has no field {name!r}{suggest(name, known)}; it has "
                f"{', '.join([*known][:_SHOWN])}"
            )
