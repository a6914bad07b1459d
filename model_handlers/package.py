"""Create a model package: a manifest with known-good rows and statistics, next to a model file.

python -m model_handlers.package model.pt --feature_columns Time,V1,Amount \\
    --sample rows.parquet --output package/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.command_names import as_typed
from common.errors import (
    ContractBroken,
    InputError,
    MillraceError,
    OutputError,
    UsageError,
    one_line,
    suggest,
)
from common.memory import MORE_MEMORY, check_memory, out_of_memory
from common.terminal import print_error
from model_handlers.manifest import MANIFEST_NAME, FeatureStatistics, GoldenRows, Manifest
from model_handlers.package_flags import make_parser
from model_handlers.write_package import write_package

if TYPE_CHECKING:
    import pyarrow as pa

    from model_handlers.loaded_model import LoadedModel

GOLDEN_ROWS = 8
# Rows of the sample that are put into one batch with the known-good rows when the model is tried.
OTHER_ROWS = 56
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def read_manifest(
    path: str, *, digest: str | None = None, feature_columns: Sequence[str] | None = None
) -> Manifest:
    """Return the manifest of a model package, or infer one from the model if there is none.

    Args:
        path: The path of the package, on any Beam filesystem.
        digest: The digest of the manifest, or the hex sha256 of the model file, that the package
            must have; None for any.
        feature_columns: The columns of the model's only input in order, for a model without a
            manifest.

    Raises:
        ModelError: The package cannot be read, or the model cannot be used.
        UsageError: `feature_columns` is missing, or differs from the manifest.
    """
    from model_handlers.infer import infer_manifest
    from model_handlers.read_package import read_package

    package = read_package(path, digest)
    if package.manifest is None:
        if not feature_columns:
            raise UsageError(
                f"model {path} has no {MANIFEST_NAME}: pass its columns in order with "
                f"--feature_columns, or create a package with {as_typed('model_handlers.package')}"
            )
        return infer_manifest(package, feature_columns)
    if feature_columns and tuple(feature_columns) != package.manifest.features:
        raise UsageError(
            f"--feature_columns differs from {MANIFEST_NAME} of {path}, which has "
            f"{','.join(package.manifest.features)}: leave out --feature_columns"
        )
    return package.manifest


def describe_features(columns: Sequence[str], values: np.ndarray) -> dict[str, FeatureStatistics]:
    """Compute the statistics of feature columns.

    Args:
        columns: The names of the columns.
        values: Their values `[rows, columns]`, all finite.

    Returns:
        The statistics by column.
    """
    values = values.astype(np.float64)
    quantiles = np.quantile(values, QUANTILES, axis=0)
    return {
        column: FeatureStatistics(
            count=len(values),
            mean=float(values[:, i].mean()),
            std=float(values[:, i].std()),
            min=float(values[:, i].min()),
            max=float(values[:, i].max()),
            quantiles={str(q): float(quantiles[k, i]) for k, q in enumerate(QUANTILES)},
        )
        for i, column in enumerate(columns)
    }


def with_golden_rows(
    data: bytes,
    manifest: Manifest,
    inputs: Mapping[str, np.ndarray],
    others: Mapping[str, np.ndarray] | None = None,
    trusted_modules: Sequence[str] = (),
) -> Manifest:
    """Run a model on some rows, and return its manifest with them as known-good rows.

    Args:
        data: The bytes of the model file.
        manifest: The manifest of the model.
        inputs: The rows of each input, by name.
        others: More rows of each input, to put into one batch with the first ones when the model
            is tried; None to use only random ones.
        trusted_modules: The top-level modules that the manifest's architecture may import.

    Raises:
        ModelError: The model cannot be loaded.
        ContractBroken: The model fails on the rows, returns NaN or infinity, or answers a row
            differently in another batch.
    """
    import torch

    from model_handlers.formats.load import load_module
    from model_handlers.loaded_model import LoadedModel
    from model_handlers.trusted_code import TrustedCode
    from model_handlers.try_rows import check_independence

    arrays = [np.asarray(inputs[spec.name], dtype=spec.dtype) for spec in manifest.inputs]
    rows = len(arrays[0])
    module = load_module(data, manifest, code=TrustedCode(tuple(trusted_modules)))
    model = LoadedModel(
        module=module,
        manifest=manifest,
        outputs=manifest.outputs,
        device=torch.device("cpu"),
        batch_rows=rows,
    )
    answers = _finite_answers(model, arrays)
    golden = GoldenRows(
        inputs={spec.name: a.tolist() for spec, a in zip(manifest.inputs, arrays, strict=True)},
        outputs={spec.name: a.tolist() for spec, a in zip(manifest.outputs, answers, strict=True)},
    )
    manifest = replace(manifest, golden=golden)
    beside = None
    if others is not None:
        beside = [np.asarray(others[spec.name], dtype=spec.dtype) for spec in manifest.inputs]
    check_independence(replace(model, manifest=manifest), arrays, answers, beside)
    return manifest


def _finite_answers(model: LoadedModel, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return a model's answers to known-good rows, one array per output.

    Raise ContractBroken if the model fails, or returns NaN or infinity.
    """
    from model_handlers.loaded_model import ROW_FAULTS, describe_error

    name, rows = model.manifest.name, len(arrays[0])
    try:
        answers = model.forward(arrays, slice(0, rows))
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {name} fails on the sample: {describe_error(error)}"
        ) from error
    for spec, answer in zip(model.manifest.outputs, answers, strict=True):
        if not np.isfinite(answer).all():
            raise ContractBroken(
                f"model {name} returns NaN or infinity as {spec.name} for the first {rows} valid "
                "rows: pass another --sample"
            )
    return answers


def sound_rows(path: str, columns: Sequence[str]) -> np.ndarray:
    """Read the rows of a Parquet file in which no value is null, NaN or infinite.

    Args:
        path: The path of a local Parquet file.
        columns: The numeric columns to read.

    Returns:
        The values, float64 `[rows, columns]`.

    Raises:
        InputError: The file cannot be read, lacks a column, has a column that is not numeric, or
            has no valid row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise InputError(f"sample {path} does not exist: expected a Parquet file")
    try:
        names = pq.read_schema(path).names
        for column in columns:
            if column not in names:
                raise InputError(f"sample {path} has no column {column!r}{suggest(column, names)}")
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        check_memory(error, f"sample {path}", MORE_MEMORY)
        raise InputError(
            f"sample {path}: expected a Parquet file, but it cannot be read as one "
            f"({type(error).__name__}); convert other files to Parquet first"
        ) from error
    values = np.stack([_numbers(table, column, path) for column in columns], axis=1)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        raise InputError(
            f"sample {path}: expected at least one row without null, NaN or infinity, got none"
        )
    return values


def _numbers(table: pa.Table, column: str, path: str) -> np.ndarray:
    """Return a column of a sample as float64 `[rows]`."""
    import pyarrow as pa

    found = table.column(column)
    try:
        return np.asarray(found.cast(pa.float64()).to_numpy())
    except pa.ArrowException as error:
        check_memory(error, f"sample {path}")
        # The message of Arrow may quote a value.
        raise InputError(
            f"sample {path}: expected numbers in column {column!r}, got {found.type}"
        ) from error


def make_package(args: argparse.Namespace) -> Manifest:
    """Create and write the package that the command line describes.

    Args:
        args: The parsed arguments of the command.

    Returns:
        The manifest of the package.

    Raises:
        ModelError: The model cannot be read, loaded or packaged.
        InputError: The sample cannot be used.
        OutputError: The package cannot be written.
        UsageError: An argument is invalid.
    """
    from model_handlers.infer import infer_manifest
    from model_handlers.read_package import ModelPackage, read_bytes

    columns = tuple(args.feature_columns.split(","))
    trusted = tuple(args.trusted_modules.split(",")) if args.trusted_modules else ()
    package = ModelPackage(Path(args.model).name, read_bytes(args.model), None)
    manifest = infer_manifest(
        package,
        columns,
        name=args.name,
        version=args.version,
        architecture=args.architecture,
        trusted_modules=trusted,
        batch_dependence=args.allow_batch_dependence,
        sampled=args.sample is not None,
    ).choose(args.score_output)
    if args.sample:
        values = sound_rows(args.sample, columns)
        manifest = replace(manifest, statistics=describe_features(columns, values))
        name = manifest.inputs[0].name
        others = {name: values[GOLDEN_ROWS:][:OTHER_ROWS]}
        rows = {name: values[:GOLDEN_ROWS]}
        manifest = with_golden_rows(package.data, manifest, rows, others, trusted)
    try:
        write_package(Path(args.output), package.data, manifest)
    except OSError as error:
        check_memory(error, f"package {args.output}", MORE_MEMORY)
        raise OutputError(f"package {args.output} cannot be written: {one_line(error)}") from error
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code.

    Returns:
        0 if the package was written, 1 if the model cannot be packaged, 2 for wrong arguments.
    """
    try:
        args = make_parser().parse_args(argv)
        manifest = make_package(args)
    except MillraceError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        print_error(out_of_memory(one_line(error), MORE_MEMORY))
        return 1
    outputs = ", ".join(spec.name for spec in manifest.outputs)
    print(f"created {args.output}: {manifest.name} {manifest.version}, digest {manifest.digest}")
    print(
        f"outputs: {outputs}; score: {manifest.score_output or f'none; {manifest.score_advice()}'}"
    )
    if manifest.golden is None:
        print("known-good rows: none, so workers cannot check the model; --sample adds them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
