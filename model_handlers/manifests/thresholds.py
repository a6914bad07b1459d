"""The thresholds of decisions: the numbers at which the step `cut` of a field cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.command_line import Thresholds
from common.errors import UsageError, suggest
from model_handlers.manifests.manifest import FieldSpec, Manifest
from model_handlers.steps.answers import Cut


def thresholds_of(manifest: Manifest) -> Thresholds:
    """Return the thresholds of each field that has some, by field."""
    cuts = {spec.name: _cut_of(spec) for spec in manifest.fields}
    return {name: at for name, at in cuts.items() if at}


def with_thresholds(manifest: Manifest, thresholds: Thresholds) -> Manifest:
    """Return a manifest with other thresholds.

    Its known-good rows no longer have fields, which may be others now.

    Args:
        manifest: The manifest.
        thresholds: The new thresholds, in ascending order, by field. Other fields keep theirs.

    Raises:
        UsageError: A field has no thresholds, or not as many, or they are not in ascending order.
    """
    if not thresholds:
        return manifest
    packaged = thresholds_of(manifest)
    for name, at in thresholds.items():
        _check(manifest, name, at, packaged)
    fields = tuple(
        _cut_at(spec, thresholds[spec.name]) if spec.name in thresholds else spec
        for spec in manifest.fields
    )
    golden = None if manifest.golden is None else replace(manifest.golden, fields={})
    return replace(manifest, fields=fields, golden=golden)


def check_used(
    manifest: Manifest, thresholds: Thresholds, written: Sequence[str], flag: str = "output_fields"
) -> None:
    """Raise UsageError if new thresholds change nothing that is written.

    Args:
        manifest: The manifest.
        thresholds: The new thresholds by field.
        written: The outputs and fields that are written.
        flag: The flag that chooses them.
    """
    needed = manifest.fields_for(written)
    for name in thresholds:
        if name not in needed:
            raise UsageError(
                f"--thresholds {name} has no effect, because the field {name} is not written: add "
                f"it to --{flag}, or leave out --thresholds {name}"
            )


def thresholds_flag(thresholds: Thresholds) -> str | None:
    """Return thresholds as the value of the flag `--thresholds`, or None without any."""
    texts = (f"{name}={','.join(map(repr, at))}" for name, at in thresholds.items())
    return " ".join(texts) or None


def _shown(at: Sequence[float]) -> str:
    """Return thresholds as text."""
    return ", ".join(f"{number:g}" for number in at)


def _check(manifest: Manifest, name: str, at: Sequence[float], packaged: Thresholds) -> None:
    if not packaged:
        raise UsageError(
            f"--thresholds has no effect: model {manifest.name} has no field with the step cut, "
            "which has thresholds: leave out --thresholds"
        )
    if name not in packaged:
        raise UsageError(
            f"--thresholds: model {manifest.name} has no field {name!r} with thresholds"
            f"{suggest(name, packaged)}; its fields with thresholds are {', '.join(packaged)}"
        )
    count = len(packaged[name])
    if len(at) != count:
        raise UsageError(
            f"--thresholds {name}: expected {count} number{'s' if count > 1 else ''}, as in the "
            f"package ({_shown(packaged[name])}), got {len(at)}"
        )
    if list(at) != sorted(set(at)):
        raise UsageError(
            f"--thresholds {name}: expected numbers in ascending order, got {_shown(at)}"
        )


def _cut_of(spec: FieldSpec) -> tuple[float, ...]:
    """Return the thresholds of the last step `cut` of a field; empty without one."""
    return next((s.at for s in reversed(spec.chain.steps) if isinstance(s, Cut)), ())


def _cut_at(spec: FieldSpec, at: tuple[float, ...]) -> FieldSpec:
    """Return a field whose last step `cut` has other thresholds."""
    steps = list(spec.chain.steps)
    last = max(i for i, step in enumerate(steps) if isinstance(step, Cut))
    cut = steps[last]
    assert isinstance(cut, Cut)
    steps[last] = replace(cut, at=at)
    return replace(spec, chain=replace(spec.chain, steps=tuple(steps)))
