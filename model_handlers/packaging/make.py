"""Make a model package from a model file, a sample, and columns with steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.errors import InputError
from model_handlers.devices.pass_size import PassSize
from model_handlers.formats.load import load_module, sniff
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import (
    FeatureStatistics,
    FieldSpec,
    InputSpec,
    Manifest,
    OutputSpec,
    RawType,
)
from model_handlers.manifests.model_json import parse_manifest, write_manifest
from model_handlers.packaging.builder import Steps, Tensor
from model_handlers.packaging.fit import FittedInputs, PackagedFiles, digests, fit_inputs
from model_handlers.packaging.golden import (
    GOLDEN_ROWS,
    OTHER_ROWS,
    raw_golden,
    record_rows,
)
from model_handlers.packaging.input_specs import in_order, input_specs, whole_inputs
from model_handlers.packaging.prepared import Prepared, first_fault, prepare_source
from model_handlers.packaging.probe import PROBE_ROWS, probe, score_of
from model_handlers.packaging.signature import Signature, read_signature
from model_handlers.packaging.skeleton import by_name, need_inputs
from model_handlers.packaging.statistics import describe_columns, describe_features
from model_handlers.preparation import Preparation
from model_handlers.read_package import ModelPackage
from model_handlers.trials.try_rows import MADE_UP_ROWS, check_made_up_rows
from model_handlers.trusted_code import TrustedCode, record_sources, steps_context


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a user says about a package besides the model file and the sample.

    Attributes:
        name: The name of the model; the file name without its suffix by default.
        version: The version of the model.
        inputs: The columns of each input, by name; None to take columns with the names of the
            inputs.
        columns: The raw types of columns; those of the sample by default.
        outputs: Names for outputs that have none.
        fields: What is computed from the outputs, by name.
        score: The output or field that is the score.
        output_fields: The outputs and fields to write if a run names none; empty for all.
        architecture: `module:Class` to load weights into.
        architecture_args: The keyword arguments of that class.
        trusted_modules: The top-level modules that may be imported.
        batch_dependence: The accepted difference between answers to a row in different batches.
        folder: The folder to which the paths of vocabularies are relative.
    """

    name: str | None = None
    version: str = "1"
    inputs: Mapping[str, Tensor] | FittedInputs | None = None
    columns: Mapping[str, RawType] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    fields: Mapping[str, Steps] = field(default_factory=dict)
    score: str | None = None
    output_fields: Sequence[str] = ()
    architecture: str | None = None
    architecture_args: Mapping[str, Any] = field(default_factory=dict)
    trusted_modules: Sequence[str] = ()
    batch_dependence: float | None = None
    folder: Path = Path()


def make(
    model: ModelPackage, about: Description, sample: pa.Table | None
) -> tuple[Manifest, Mapping[str, bytes]]:
    """Return the manifest of a package, and its files besides the model file.

    Args:
        model: The model file.
        about: What the user says about the package.
        sample: Rows of the source, or None.

    Raises:
        ModelError: The model cannot be loaded, or does not fit what the user says.
        InputError: The sample cannot be used.
        UsageError: What the user says is wrong.
    """
    code = TrustedCode(tuple(about.trusted_modules))
    draft = draft_manifest(model, about)
    module = load_module(model.data, draft, code=code)
    signature = read_signature(module)
    fitted = make_inputs(about, model, signature, sample, code)
    files = PackagedFiles(about.folder, fitted.files)
    fields = tuple(
        FieldSpec(name, files.of_chain(steps.chain)) for name, steps in about.fields.items()
    )
    draft = replace(
        draft,
        inputs=input_specs(fitted, signature, sample),
        columns=fitted.columns,
        files=digests(files.content),
        schema_version=2 if fitted.columns or fields else 1,
    )
    preparation = Preparation(draft, steps_context(files.content, code))
    prepared = None if sample is None else _sound(draft, preparation, sample)
    outputs = probe(
        module, model.file, draft.inputs, rows=_first_rows(prepared), names=about.outputs
    )
    manifest = replace(
        draft,
        outputs=outputs,
        fields=fields,
        score_output=score_of(outputs),
        output_fields=tuple(about.output_fields),
    ).choose(about.score)
    preparation = Preparation(manifest, steps_context(files.content, code))
    if sample is None or prepared is None:
        _try_made_up(module, manifest, preparation)
    else:
        manifest = _with_sample(module, manifest, preparation, prepared, sample)
    # A value that no manifest may have is found here, and not when the package is loaded.
    return parse_manifest(write_manifest(record_sources(manifest, code))), files.content


def draft_manifest(model: ModelPackage, about: Description) -> Manifest:
    """Return a manifest in which inputs and outputs are not known yet."""
    found = sniff(model.data)
    return Manifest(
        name=about.name or PurePosixPath(model.file).stem,
        version=about.version,
        format="state_dict" if found == "torch_save" else found,  # type: ignore[arg-type]
        file=model.file,
        sha256=model.sha256,
        inputs=(InputSpec("features", ("unknown",)),),
        outputs=(OutputSpec("output"),),
        architecture=about.architecture,
        architecture_args=about.architecture_args,
        batch_dependence=about.batch_dependence,
    )


def make_inputs(
    about: Description,
    model: ModelPackage,
    signature: Signature,
    sample: pa.Table | None,
    code: TrustedCode,
) -> FittedInputs:
    """Return the inputs in the order of the model, with fitted steps."""
    given = about.inputs
    if isinstance(given, FittedInputs):
        return replace(given, tensors=in_order(given.tensors, signature))
    if given is None:
        given = by_name(signature, sample) or need_inputs(model.file, signature, sample)
    tensors = in_order(given, signature)
    return fit_inputs(
        tensors,
        sample,
        declared=about.columns,
        folder=about.folder,
        context=steps_context({}, code),
        whole=whole_inputs(tensors, signature),
    )


def _sound(manifest: Manifest, preparation: Preparation, sample: pa.Table) -> Prepared:
    """Return the rows of a sample that the inputs accept. Raise InputError if there are none."""
    prepared = prepare_source(manifest, preparation, sample)
    if not len(prepared.rows):
        why = first_fault(prepared)
        sound = "that all steps accept" if manifest.columns else "without null, NaN or infinity"
        raise InputError(
            f"sample: expected at least one row {sound}, got none{f' ({why})' * bool(why)}"
        )
    return prepared


def _first_rows(prepared: Prepared | None) -> list[np.ndarray] | None:
    """Return the first rows of a sample, repeated if there are too few."""
    if prepared is None:
        return None
    places = np.arange(PROBE_ROWS) % len(prepared.rows)
    return [array[places] for array in prepared.values()]


def _try_made_up(module: torch.nn.Module, manifest: Manifest, preparation: Preparation) -> None:
    """Check a model that is packaged without a sample. Raise ContractBroken if it is not usable."""
    check_made_up_rows(
        LoadedModel(
            module=module,
            manifest=manifest,
            outputs=manifest.outputs,
            device=torch.device("cpu"),
            size=PassSize(MADE_UP_ROWS),
            preparation=preparation,
        )
    )


def _with_sample(
    module: torch.nn.Module,
    manifest: Manifest,
    preparation: Preparation,
    prepared: Prepared,
    sample: pa.Table,
) -> Manifest:
    """Return a manifest with statistics and known-good rows of a sample."""
    manifest = replace(
        manifest,
        statistics=_plain_statistics(manifest, prepared),
        column_statistics=describe_columns(prepared.cells),
    )
    if manifest.columns:
        return raw_golden(module, manifest, preparation, sample)
    golden = {name: array[:GOLDEN_ROWS] for name, array in prepared.items()}
    others = {name: array[GOLDEN_ROWS:][:OTHER_ROWS] for name, array in prepared.items()}
    return record_rows(module, manifest, golden, others, preparation=preparation)


def _plain_statistics(manifest: Manifest, prepared: Prepared) -> dict[str, FeatureStatistics]:
    """Return the statistics of columns that are read as they are, one number from each."""
    return {
        column: found
        for spec in manifest.inputs
        if not spec.is_list_column and spec.columns
        for column, found in describe_features(
            spec.columns, prepared[spec.name].reshape(len(prepared.rows), -1)
        ).items()
    }
