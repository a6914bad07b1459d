"""Checks that the parts of a manifest agree with each other."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import ManifestError, suggest
from common.texts import is_one_line
from model_handlers.manifests.parts import (
    MANIFEST_NAME,
    MAX_DIMENSIONS,
    MAX_WIDTH,
    FeatureStatistics,
    FieldSpec,
    GoldenRows,
    InputSpec,
    OutputSpec,
    refuse_manifest,
)
from model_handlers.steps.answers import Argmax, Names
from model_handlers.steps.chain import Chain
from model_handlers.steps.raw import RAW_TYPES
from model_handlers.steps.step import NUMBERS_FROM, Kind, kind_of, words_for

# Windows opens these devices instead of files, whatever the extension.
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{n}{i}" for n in ("com", "lpt") for i in range(10)}
_LONGEST_NAME = 255


def is_file_name(name: str) -> bool:
    """Return whether a name is that of a file in a folder, not of a path."""
    return "/" not in name and "\\" not in name and name not in ("", ".", "..")


def _is_portable(name: str) -> bool:
    """Return whether a file can have a name on every system. Windows forbids the most names."""
    return (
        is_file_name(name)
        and name.isprintable()
        and not set(name) & set('<>:"|?*')
        and not name.endswith((".", " "))
        and name.partition(".")[0].rstrip().lower() not in _DEVICES
        and len(name.encode()) <= _LONGEST_NAME
    )


def _folded(name: str) -> str:
    """Return what names have in common that are the same file on some systems."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_label(text: str, where: str) -> None:
    """Raise ManifestError unless a text can be a name in messages and tables.

    Args:
        text: The name.
        where: The place in the manifest.
    """
    if not text or not is_one_line(text):
        refuse_manifest(where, "a name without line breaks and control characters", text)


def is_digest(text: str) -> bool:
    """Return whether a text is a hex sha256 in lower case."""
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def check_declared(
    inputs: Sequence[InputSpec], columns: Collection[str], statistics: Iterable[str]
) -> None:
    """Raise ManifestError unless each declared column is read, and statistics are of declared ones.

    Args:
        inputs: The inputs of the model.
        columns: The declared columns.
        statistics: The columns that have statistics.
    """
    read = {name for spec in inputs for name in spec.sources}
    for column in columns:
        if column not in read:
            refuse_manifest("columns", "only columns that an input reads", column)
    for column in statistics:
        if column not in columns:
            refuse_manifest("column_statistics", "only columns that are declared", column)


def check_files(files: Mapping[str, str], used: Sequence[str], taken: Sequence[str]) -> None:
    """Raise ManifestError unless the files of a package have valid names and digests.

    Args:
        files: The digest of each file.
        used: The files that steps read.
        taken: Names that other files of the package have.
    """
    seen = {_folded(name): name for name in taken}
    for name, digest in files.items():
        if not _is_portable(name):
            expected = "names of files in the manifest's folder, which all systems allow"
            refuse_manifest("files", expected, name)
        if (folded := _folded(name)) in seen:
            expected = f"names that differ by more than case from {seen[folded]}"
            refuse_manifest("files", expected, name)
        seen[folded] = name
        if not is_digest(digest):
            refuse_manifest(f"files.{name}", "64 lowercase hex digits", digest)
    for name in used:
        if name not in files:
            refuse_manifest("files", f"the file {name}, which a step reads", list(files))


def check_names(inputs: Sequence[InputSpec], declared: Mapping[str, Any]) -> None:
    """Raise ManifestError unless each input has either columns of numbers or chains.

    Args:
        inputs: The inputs.
        declared: The columns that the manifest declares.
    """
    for spec in inputs:
        where = f"inputs.{spec.name}"
        if spec.chains and (spec.columns or spec.impute):
            refuse_manifest(where, "from, or columns and impute", "both")
        for column in spec.columns:
            if column in declared:
                hint = ": read it by a chain, with from"
                refuse_manifest(f"{where}.columns", "columns that are not declared", column, hint)


def check_chains(inputs: Sequence[InputSpec], declared: Mapping[str, str]) -> None:
    """Raise ManifestError unless the chains of all inputs give as many numbers as they have.

    Args:
        inputs: The inputs.
        declared: The raw type of each column.
    """
    types = {name: RAW_TYPES[raw] for name, raw in declared.items()}
    for spec in inputs:
        width = 0
        for number, chain in enumerate(spec.chains):
            where = f"inputs.{spec.name}.from[{number}]"
            type_ = _result(chain, types, where)
            kind = kind_of(type_)
            if kind not in (Kind.NUMBER, Kind.VECTOR):
                hint = f": {NUMBERS_FROM[kind]}" if kind in NUMBERS_FROM else ""
                raise ManifestError(
                    f"{MANIFEST_NAME}: {where}: expected a chain that ends in numbers, got "
                    f"{words_for(type_)}{hint}"
                )
            width += type_.list_size if kind is Kind.VECTOR else 1
        if spec.chains and width != spec.width:
            expected = f"chains that give {spec.width} numbers, for shape {list(spec.shape)}"
            refuse_manifest(f"inputs.{spec.name}.from", expected, width)


def check_fields(
    fields: Sequence[FieldSpec], outputs: Sequence[OutputSpec]
) -> dict[str, pa.DataType]:
    """Return the type of each output and field. Raise ManifestError if a chain is not valid."""
    types = {spec.name: spec.arrow_type for spec in outputs}
    for field in fields:
        where = f"fields.{field.name}"
        if field.name in types:
            refuse_manifest(where, "a name that no output or other field has", field.name)
        types[field.name] = _result(field.chain, types, f"{where}.from")
    check_counts(fields, types, {})
    return types


def _result(chain: Chain, types: Mapping[str, pa.DataType], where: str) -> pa.DataType:
    try:
        return chain.gives(types)
    except ManifestError as error:
        raise ManifestError(" ".join(f"{MANIFEST_NAME}: {where}{error}".split())) from error


def check_counts(
    fields: Sequence[FieldSpec], types: Mapping[str, pa.DataType], files: Mapping[str, bytes]
) -> None:
    """Raise ManifestError unless there is a name for each position that `argmax` can return.

    Args:
        fields: The fields.
        types: The type of each output and field.
        files: The content of the files of the package, as far as it is known.
    """
    # The length of the vector of which a field is a position.
    lengths: dict[str, int] = {}
    for field in fields:
        length = lengths.get(field.chain.start)
        for number, (step, type_) in enumerate(
            zip(field.chain.steps, field.chain.types(types), strict=False), 1
        ):
            if isinstance(step, Names) and length and (step.file is None or step.file in files):
                _check_count(step, length, files, f"fields.{field.name}.from[{number}]")
            length = type_.list_size if isinstance(step, Argmax) else None
        if length:
            lengths[field.name] = length


def _check_count(step: Names, length: int, files: Mapping[str, bytes], where: str) -> None:
    found = step.names(files)
    if len(found) != length:
        member = "values" if step.file is None else f"file {step.file}"
        refuse_manifest(f"{where}.{member}", f"{length} names, one for each position", found)


def check_tensors(where: str, specs: tuple[InputSpec, ...] | tuple[OutputSpec, ...]) -> None:
    """Raise ManifestError unless the names and shapes of tensors are valid."""
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        refuse_manifest(where, "one or more tensors with different names", names)
    for spec in specs:
        if len(spec.shape) > MAX_DIMENSIONS:
            refuse_manifest(
                f"{where}.{spec.name}.shape", f"at most {MAX_DIMENSIONS} sizes", len(spec.shape)
            )
        if min(spec.shape, default=1) < 1 or math.prod(spec.shape) > MAX_WIDTH:
            expected = (
                f"positive sizes, without the batch dimension, of at most {MAX_WIDTH:,} elements"
            )
            refuse_manifest(f"{where}.{spec.name}.shape", expected, list(spec.shape))


def check_columns(spec: InputSpec, statistics: Mapping[str, FeatureStatistics]) -> None:
    """Raise ManifestError unless the columns of an input match its shape."""
    where = f"inputs.{spec.name}"
    if len(set(spec.columns)) != len(spec.columns) or not spec.columns:
        refuse_manifest(
            f"{where}.columns", "one or more columns, none of them twice", list(spec.columns)
        )
    if not spec.is_list_column and len(spec.columns) != spec.width:
        expected = f"{spec.width} columns, for shape {list(spec.shape)}"
        refuse_manifest(f"{where}.columns", expected, len(spec.columns))
    for column, how in spec.impute.items():
        if column not in spec.columns or spec.is_list_column:
            refuse_manifest(
                f"{where}.impute", "a column of this input with one number per row", column
            )
        if how != "mean":
            refuse_manifest(f"{where}.impute.{column}", "'mean'", how)
        if column not in statistics:
            raise ManifestError(
                f"model.json: {where}.impute.{column}: statistics has no mean of the column: "
                "package the model with --sample"
            )


def check_golden(
    golden: GoldenRows,
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    fields: Sequence[FieldSpec],
    declared: Mapping[str, str],
) -> None:
    """Raise ManifestError unless the known-good rows have the manifest's tensors and shapes."""
    known = {spec.name for spec in outputs}
    if not golden.outputs or set(golden.outputs) - known:
        _refuse_golden(golden)
    if not (golden.rtol >= 0 and golden.atol >= 0):
        refuse_manifest("golden", "rtol and atol of at least 0", f"{golden.rtol} and {golden.atol}")
    count = len(golden.rows)
    if declared:
        _check_raw(golden, inputs, fields)
    elif set(golden.inputs) != {spec.name for spec in inputs}:
        _refuse_golden(golden)
    else:
        count = len(golden.inputs[inputs[0].name])
        for spec in inputs:
            shape = (spec.width,) if spec.shape else ()
            where = f"golden.inputs.{spec.name}"
            _check_rows(where, golden.inputs[spec.name], spec.dtype, (count, *shape))
    for output in outputs:
        if output.name in golden.outputs:
            where = f"golden.outputs.{output.name}"
            _check_rows(where, golden.outputs[output.name], output.dtype, (count, *output.shape))


def _refuse_golden(golden: GoldenRows) -> None:
    expected = "rows for every input and for one or more outputs"
    refuse_manifest("golden", expected, ", ".join([*golden.inputs, *golden.outputs]))


def _check_raw(
    golden: GoldenRows, inputs: Sequence[InputSpec], fields: Sequence[FieldSpec]
) -> None:
    """Raise ManifestError unless raw known-good rows have all columns, and fields all rows."""
    if not golden.rows or golden.inputs:
        expected = "one or more rows with the columns of the source, and no inputs"
        refuse_manifest("golden.rows", expected, golden.rows)
    for number, row in enumerate(golden.rows):
        for spec in inputs:
            for column in spec.sources:
                if column not in row:
                    hint = suggest(column, row)
                    refuse_manifest(f"golden.rows[{number}]", f"the column {column!r}", row, hint)
    names = [field.name for field in fields]
    for name, values in golden.fields.items():
        if name not in names:
            expected = f"one of the fields {', '.join(names)}"
            refuse_manifest("golden.fields", expected, name, suggest(name, names))
        if len(values) != len(golden.rows):
            refuse_manifest(f"golden.fields.{name}", f"{len(golden.rows)} values", values)


def _check_rows(where: str, rows: list[Any], dtype: str, shape: tuple[int, ...]) -> None:
    try:
        array = np.asarray(rows)
        numbers = array.dtype.kind in "biuf" and np.asarray(rows, dtype) is not None
        # Known-good rows may come from real data, so the message has no value of them.
        found = f"the shape {list(array.shape)}" if numbers else "other values"
    except (ValueError, TypeError, OverflowError):
        numbers, found = False, "rows of different lengths or other values"
    # A list of one number is one number.
    single = numbers and len(shape) == 1 and array.shape[:1] == shape and array.size == len(rows)
    if not numbers or not (single or array.shape == shape) or shape[0] < 1:
        raise ManifestError(
            f"{MANIFEST_NAME}: {where}: expected one or more rows of {dtype} in the shape "
            f"{list(shape)}, got {found}"
        )
