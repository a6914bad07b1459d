"""Make a model package and write it to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from common.errors import ManifestError, OutputError, one_line
from common.memory import MORE_MEMORY, check_memory
from model_handlers.manifests.manifest import Manifest
from model_handlers.packaging.builder import without_file_name
from model_handlers.packaging.make import Description, make
from model_handlers.read_package import ModelPackage, read_bytes
from model_handlers.write_package import write_package


def make_and_write(
    model: str, output: Path, about: Description, sample: pa.Table | None
) -> Manifest:
    """Make a model package and write it to a folder.

    Args:
        model: The path of the model file.
        output: The folder, which is created if needed.
        about: What the user says about the package.
        sample: Rows of the source, or None.

    Raises:
        ModelError: The model cannot be read, loaded or packaged.
        InputError: The sample cannot be used.
        OutputError: The package cannot be written.
        UsageError: What the user says is wrong.
    """
    data = read_bytes(model)
    try:
        manifest, files = make(ModelPackage(Path(model).name, data, None), about, sample)
    except ManifestError as error:
        # There is no model.json yet.
        raise ManifestError(without_file_name(error)) from error
    write(output, data, manifest, files)
    return manifest


def write(output: Path, data: bytes, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write a package to a folder; see `write_package`.

    Raises:
        OutputError: The package cannot be written.
    """
    try:
        write_package(output, data, manifest, files)
    except OSError as error:
        check_memory(error, f"package {output}", MORE_MEMORY)
        raise OutputError(f"package {output} cannot be written: {one_line(error)}") from error
