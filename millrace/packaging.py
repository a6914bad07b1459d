"""Make model packages and prepare training rows in Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from common.errors import UsageError
from common.memory import MORE_MEMORY, check_memory
from model_handlers.manifests.manifest import Manifest, OutputSpec, RawType
from model_handlers.packaging.builder import Columns, Steps, Tensor, tensors
from model_handlers.packaging.fit import FittedInputs, fit_inputs
from model_handlers.packaging.prepared import Prepared, prepare_source
from model_handlers.trusted_code import TrustedCode, steps_context

Inputs = Mapping[str, Columns | Tensor]
PathLike = str | os.PathLike[str]
Sample: TypeAlias = Any


def fit(
    sample: Sample,
    inputs: Inputs,
    *,
    columns: Mapping[str, RawType] | None = None,
    trusted_modules: Sequence[str] = (),
) -> FittedInputs:
    """Fit steps on a sample, before a model is trained.

    The result prepares rows for training with `prepare`, and is passed to `package` as `inputs`
    when the model is trained. So rows are prepared in the same way for both.

    Args:
        sample: Paths of Parquet, CSV or JSON files, a table of Arrow, a data frame, or columns by
            name.
        inputs: The columns of each input, with their steps, by the name of the input.
        columns: The raw types of columns by name, such as {"clicks": "list<int64>"}; those that the
            sample has by default.
        trusted_modules: The top-level modules whose functions steps may call.

    Raises:
        InputError: The sample cannot be used.
        ManifestError: A step does not fit the column.
        UsageError: An argument is wrong.
    """
    return fit_inputs(
        tensors(inputs),
        as_table(sample),
        declared=columns or {},
        folder=Path(),
        context=steps_context({}, TrustedCode(tuple(trusted_modules))),
    )


def prepare(
    rows: Sample, inputs: FittedInputs | Inputs, *, trusted_modules: Sequence[str] = ()
) -> Prepared:
    """Turn rows of a source into tensors for training, as a run prepares them for the model.

    Args:
        rows: Paths of Parquet, CSV or JSON files, a table of Arrow, a data frame, or columns by
            name.
        inputs: The result of `fit`; or inputs whose steps need no fitting.
        trusted_modules: The top-level modules whose functions steps may call.

    Returns:
        An array [rows, *shape] for each input by name, without the rows that a run would refuse.
        The attribute `rows` has the numbers of the rows that are left, `refused` says why others
        are not, and the method `torch` returns the tensors as those of PyTorch.

    Raises:
        InputError: A column is missing, or its type cannot be used.
        UsageError: A step is not fitted yet.
    """
    from model_handlers.packaging.input_specs import input_specs
    from model_handlers.packaging.signature import Signature
    from model_handlers.preparation import Preparation

    table = as_table(rows)
    code = TrustedCode(tuple(trusted_modules))
    if not isinstance(inputs, FittedInputs):
        inputs = fit_inputs(
            tensors(inputs), table, declared={}, folder=Path(), context=steps_context({}, code)
        )
    draft = Manifest(
        name="training",
        version="0",
        format="pt2",
        file="model.pt2",
        sha256="0" * 64,
        inputs=input_specs(inputs, Signature(()), table),
        outputs=(OutputSpec("output"),),
        columns=inputs.columns,
        files=inputs.digests,
        schema_version=2,
    )
    return prepare_source(draft, Preparation(draft, steps_context(inputs.files, code)), table)


def package(
    model: PathLike,
    output: PathLike,
    *,
    sample: Sample = None,
    inputs: Inputs | FittedInputs | None = None,
    columns: Mapping[str, RawType] | None = None,
    fields: Mapping[str, Steps] | None = None,
    score: str | None = None,
    outputs: Sequence[str] = (),
    output_fields: Sequence[str] = (),
    name: str | None = None,
    version: str = "1",
    architecture: str | None = None,
    architecture_args: Mapping[str, Any] | None = None,
    trusted_modules: Sequence[str] = (),
    allow_batch_dependence: float | None = None,
) -> Manifest:
    """Make a model package from a model file.

    Args:
        model: The path of the model file.
        output: The folder to write the package to.
        sample: Rows of the source, from which statistics and known-good rows are taken, and on
            which steps are fitted: paths of Parquet, CSV or JSON files, a table of Arrow, a data
            frame, or columns by name. Without one, workers cannot check the model.
        inputs: The columns of each input, with their steps, by the name of the input, or the result
            of `fit`. By default, each input is the column of the sample with its name.
        columns: The raw types of columns by name, such as {"clicks": "list<int64>"}; those that the
            sample has by default. The result of `fit` has its own, so pass them to `fit` then.
        fields: What is computed from the outputs, by name: `output(...)`, `field(...)` and steps.
        score: The output or field that is the score; by default the output with one float in a
            row, if there is only one.
        outputs: Names for the outputs of a model that returns a tensor or a tuple.
        output_fields: The outputs and fields that runs write, and the server answers, unless they
            choose others. By default, runs write all, and the server answers only the score.
        name: The name of the model; the file name without its suffix by default.
        version: The version of the model.
        architecture: `module:Class` to load weights into, for files that contain only weights.
        architecture_args: The keyword arguments of that class.
        trusted_modules: The top-level modules that may be imported for it, and for functions.
        allow_batch_dependence: The accepted difference between answers to a row in different
            batches.

    Returns:
        The manifest of the package.

    Raises:
        ModelError: The model cannot be read, loaded or packaged.
        InputError: The sample cannot be used.
        OutputError: The package cannot be written.
        UsageError: An argument is wrong.
    """
    from model_handlers.packaging.make import Description
    from model_handlers.packaging.write import make_and_write

    if columns and isinstance(inputs, FittedInputs):
        raise UsageError("columns has no effect on the result of fit: pass columns to fit instead")
    about = Description(
        name=name,
        version=version,
        inputs=inputs if inputs is None or isinstance(inputs, FittedInputs) else tensors(inputs),
        columns=columns or {},
        outputs=outputs,
        fields=_fields(fields or {}),
        score=score,
        output_fields=output_fields,
        architecture=architecture,
        architecture_args=architecture_args or {},
        trusted_modules=trusted_modules,
        batch_dependence=allow_batch_dependence,
    )
    table = None if sample is None else as_table(sample)
    return make_and_write(str(model), Path(output), about, table)


def _fields(fields: Mapping[str, Steps]) -> Mapping[str, Steps]:
    for name, steps in fields.items():
        if not isinstance(steps, Steps) or steps.start == "column":
            raise UsageError(
                f"fields: expected output(...) or field(...) as {name!r}, got "
                f"{'column(...)' if isinstance(steps, Steps) else type(steps).__name__}"
            )
    return fields


def as_table(sample: Sample) -> pa.Table:
    """Return the rows of a sample as a table.

    Args:
        sample: Paths, globs or folders of Parquet, CSV and JSON files; a table of Arrow, or a data
            frame that Arrow can read, such as one of pandas or Polars; columns by name, or rows.

    Raises:
        InputError: A file cannot be read.
        UsageError: The sample is something else.
    """
    from transforms.samples import read_sample

    if isinstance(sample, str | os.PathLike):
        return read_sample([os.fspath(sample)])
    if isinstance(sample, pa.Table):
        return sample
    try:
        if isinstance(sample, Sequence) and sample:
            if all(isinstance(path, str | os.PathLike) for path in sample):
                return read_sample([os.fspath(path) for path in sample])
            if all(isinstance(row, Mapping) for row in sample):
                return pa.Table.from_pylist(list(sample))
        if isinstance(sample, pa.RecordBatch):
            return pa.Table.from_batches([sample])
        return pa.table(sample)
    except (TypeError, ValueError, pa.ArrowException) as error:
        check_memory(error, "the sample", MORE_MEMORY)
        raise UsageError(
            "sample: expected paths, a table of Arrow, a data frame, columns by name or rows, got "
            f"{type(sample).__name__} ({type(error).__name__})"
        ) from error
