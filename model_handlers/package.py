"""Create a model package: a manifest with known-good rows and statistics, next to a model file.

python -m model_handlers.package model.pt --feature_columns Time,V1,Amount \\
    --sample rows.parquet --output package/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from common.command_names import as_typed
from common.errors import MillraceError, UsageError, one_line, visible
from common.memory import MORE_MEMORY, out_of_memory
from common.terminal import output_may_close, print_error
from model_handlers.package_flags import make_parser

if TYPE_CHECKING:
    import pyarrow as pa

    from model_handlers.manifests.manifest import Manifest

# The flags that describe a model file.
_OF_MODELS = ("feature_columns", "inputs", "sample", "sample_query", "architecture")
OpenSample: TypeAlias = "Callable[[argparse.Namespace], pa.Table | None]"


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
    from model_handlers.manifests.manifest import MANIFEST_NAME
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


def open_parquet(args: argparse.Namespace) -> pa.Table | None:
    """Return the sample that the flags name, one local Parquet file, or None.

    Args:
        args: The parsed arguments of the command.

    Raises:
        InputError: The file cannot be read.
        UsageError: The flags name something else.
    """
    from model_handlers.packaging.samples import read_parquet

    if args.sample_query or len(args.sample or ()) > 1:
        raise UsageError(
            "this command reads one Parquet file as --sample: `millrace package` reads several "
            "files, and --sample_query"
        )
    return read_parquet(args.sample[0]) if args.sample else None


def change_package(args: argparse.Namespace) -> Manifest:
    """Write a changed copy of the package that the command line names.

    Args:
        args: The parsed arguments of the command.

    Returns:
        The manifest of the copy.

    Raises:
        ModelError: The package cannot be read.
        OutputError: The copy cannot be written.
        UsageError: An argument is invalid.
    """
    from model_handlers.manifests.manifest import MANIFEST_NAME
    from model_handlers.packaging.change import Changes, change
    from model_handlers.packaging.write import write
    from model_handlers.read_package import read_package

    given = [flag for flag in _OF_MODELS if getattr(args, flag)]
    if given or args.model:
        raise UsageError(
            f"--from changes a package: leave out {f'--{given[0]}' if given else 'the model file'}"
        )
    for flag, pairs in (("rename", args.rename), ("fill", args.fill)):
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"--{flag} names a column twice: keep one of the values")
    package = read_package(args.package)
    if package.manifest is None:
        raise UsageError(f"--from {args.package}: expected a package, which has {MANIFEST_NAME}")
    changes = Changes(
        rename=dict(args.rename),
        fill=dict(args.fill),
        name=args.name,
        version=args.version,
        score=args.score_output,
    )
    manifest = change(package.manifest, changes)
    write(Path(args.output), package.data, manifest, package.files)
    return manifest


def make_package(args: argparse.Namespace, open_sample: OpenSample) -> Manifest:
    """Create and write the package that the command line describes.

    Args:
        args: The parsed arguments of the command.
        open_sample: Reads the sample that the arguments name.

    Returns:
        The manifest of the package.

    Raises:
        ModelError: The model cannot be read, loaded or packaged.
        InputError: The sample cannot be used.
        OutputError: The package cannot be written.
        UsageError: An argument is invalid.
    """
    from model_handlers.packaging.builder import Tensor, column
    from model_handlers.packaging.make import Description
    from model_handlers.packaging.spec_file import SpecFile, read_spec
    from model_handlers.packaging.write import make_and_write

    if args.model is None:
        raise UsageError("missing model; see --help")
    if args.rename or args.fill:
        raise UsageError("--rename and --fill change a package: name it with --from")
    if args.inputs and args.feature_columns:
        raise UsageError("--inputs and --feature_columns both describe inputs: leave out one")
    spec = read_spec(args.inputs) if args.inputs else SpecFile()
    inputs = spec.inputs or None
    if args.feature_columns:
        inputs = {"features": Tensor(tuple(map(column, args.feature_columns)), as_numbers=True)}
    about = Description(
        name=args.name,
        version=args.version or "1",
        inputs=inputs,
        columns=spec.columns,
        outputs=spec.outputs,
        fields=spec.fields,
        score=args.score_output or spec.score,
        output_fields=spec.output_fields,
        architecture=args.architecture,
        architecture_args=args.architecture_args,
        trusted_modules=args.trusted_modules,
        batch_dependence=args.allow_batch_dependence,
        folder=Path(args.inputs).parent if args.inputs else Path(),
    )
    if args.sample and args.sample_query:
        raise UsageError("--sample and --sample_query both name a sample: leave out one")
    return make_and_write(args.model, Path(args.output), about, open_sample(args))


def main(argv: Sequence[str] | None = None, open_sample: OpenSample | None = None) -> int:
    """Run the command, and return its exit code.

    Args:
        argv: The arguments, without the name of the command.
        open_sample: Reads the sample that the arguments name; by default one Parquet file.

    Returns:
        0 if the package was written, 1 if the model cannot be packaged, 2 for wrong arguments.
    """
    try:
        args = make_parser().parse_args(argv)
        if args.package is not None:
            manifest = change_package(args)
        else:
            manifest = make_package(args, open_sample or open_parquet)
    except MillraceError as error:
        print(getattr(error, "skeleton", ""), end="")
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        print_error(out_of_memory(one_line(error), MORE_MEMORY))
        return 1
    with output_may_close():
        print("\n".join(map(visible, _summary(args.output, manifest))))
    return 0


def _summary(output: str, manifest: Manifest) -> Iterator[str]:
    """Yield the lines about a package that was created."""
    yield f"created {output}: {manifest.name} {manifest.version}, digest {manifest.digest}"
    outputs = ", ".join(spec.name for spec in manifest.outputs)
    score = manifest.score_output or f"none; {manifest.score_advice()}"
    yield f"outputs: {outputs}; score: {score}"
    if manifest.golden is None:
        yield "known-good rows: none, so workers cannot check the model; --sample adds them"


if __name__ == "__main__":
    sys.exit(main())
