"""Every flag of every pipeline, once: a frozen dataclass per concern, a field per flag.

A field's metadata holds what the command line's help and a Flex Template's parameter
need. Nothing of Beam is imported, so that `--help` answers at once; flags that are
not declared here are Beam's and are passed on to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from model_handlers.errors import UsageError

T = TypeVar("T")


def flag(
    text: str,
    default: Any = None,
    *,
    label: str,
    param_type: str = "TEXT",
    choices: Sequence[str] = (),
    regex: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Help text, default and template metadata -> a dataclass field that is a flag.

    A default of None means: not given. param_type, regex, label: of the Flex Template
    parameter; the regex is checked on the command line as well.
    """
    metadata = {
        "help": text,
        "label": label,
        "param_type": param_type,
        "choices": tuple(choices),
        "regex": regex,
        "metavar": metavar,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelOptions:
    """The model, and what of its answers is written."""

    model: str | None = flag(
        "model package: a folder with model.json, a .mar, or a model file",
        label="Model package",
        param_type="GCS_READ_FOLDER",
        metavar="PATH",
    )
    model_digest: str | None = flag(
        "sha256 that the model file must have; the run fails if it has another",
        label="Model digest",
        regex=r"(sha256:)?[0-9a-fA-F]{64}",
        metavar="SHA256",
    )
    feature_columns: tuple[str, ...] | None = flag(
        "for a model file without model.json: its input columns, in order",
        label="Feature columns",
        metavar="A,B,C",
    )
    score_output: str | None = flag(
        "model output written as the column `score` (default: the manifest's)",
        label="Score output",
        metavar="NAME",
    )
    output_fields: tuple[str, ...] | None = flag(
        "model outputs and source columns to write besides id, score and lineage "
        "(default: the manifest's)",
        label="Output fields",
        metavar="A,B",
    )
    device: str = flag(
        "auto, cpu, cuda or cuda:N",
        "auto",
        label="Device",
        regex=r"auto|cpu|cuda(:\d+)?",
    )
    precision: str = flag(
        "bf16 and fp16 run the model under autocast; they pay on CUDA",
        "float32",
        label="Precision",
        param_type="ENUM",
        choices=("float32", "bf16", "fp16"),
    )
    compile: bool = flag(
        "torch.compile the model (not for TorchScript); pays on CUDA",
        False,
        label="Compile the model",
        param_type="BOOLEAN",
    )
    batch_rows: int = flag(
        "rows of a record batch and of one forward pass at most",
        32_768,
        label="Rows a batch",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )


@dataclass(frozen=True)
class SourceOptions:
    """Where the rows come from."""

    input_files: tuple[str, ...] | None = flag(
        "paths, globs or folders of Parquet, CSV or JSON lines files",
        label="Input files",
        param_type="GCS_READ_FILE",
        metavar="PATTERN",
    )
    input_format: str = flag(
        "format of the input files; auto tells it by each file's suffix",
        "auto",
        label="Input format",
        param_type="ENUM",
        choices=("auto", "parquet", "csv", "jsonl"),
    )
    id_column: str | None = flag(
        "column that identifies a row, kept as row_id (default: derived from file and position)",
        label="Id column",
        metavar="NAME",
    )


@dataclass(frozen=True)
class SinkOptions:
    """Where the scored rows go."""

    output_files: str | None = flag(
        "folder for the results: FOLDER/RUN_ID/scores/ and FOLDER/RUN_ID/report.json",
        label="Output folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    output_format: str = flag(
        "format of the output files",
        "parquet",
        label="Output format",
        param_type="ENUM",
        choices=("parquet", "csv", "jsonl"),
    )


@dataclass(frozen=True)
class FailureOptions:
    """Where the rows go that cannot be scored."""

    dead_letter_files: str | None = flag(
        "folder for dead letters, FOLDER/RUN_ID/dead_letters/ (default: the output folder)",
        label="Dead letter folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )

    max_dead_letter_share: float = flag(
        "the run fails (exit code 1) if more than this share of the rows cannot be scored, from 0 "
        "to 1; it always fails if none can",
        1.0,
        label="Largest share of dead letters",
        param_type="NUMBER",
        regex=r"0(\.\d+)?|1(\.0+)?",
        metavar="SHARE",
    )


@dataclass(frozen=True)
class RunOptions:
    """The run itself."""

    run_id: str | None = flag(
        "name of the run; a second run with the same name replaces the first "
        "(default: the time of the start)",
        label="Run id",
        regex=r"[A-Za-z0-9][A-Za-z0-9._+:=-]{0,127}",
        metavar="NAME",
    )
    json_summary: bool = flag(
        "print the report as JSON on standard output instead of a summary",
        False,
        label="JSON summary",
        param_type="BOOLEAN",
    )
    debug: bool = flag(
        "show tracebacks and Beam's own log", False, label="Debug", param_type="BOOLEAN"
    )


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@dataclass(frozen=True)
class Parsed:
    """A command line, read: an instance of each options class, and Beam's own flags."""

    groups: dict[type[Any], Any]
    beam_args: list[str]

    def get(self, kind: type[T]) -> T:
        """An options class -> its instance."""
        return typing.cast(T, self.groups[kind])


def build_parser(program: str, about: str, kinds: Sequence[type[Any]]) -> argparse.ArgumentParser:
    """A pipeline's name, its description and its options classes -> the parser."""
    parser = _Parser(
        prog=f"python -m pipelines.{program}",
        description=about,
        allow_abbrev=False,
        epilog="All flags of Apache Beam and its runners are accepted as well, for instance "
        "--runner DataflowRunner --project P --region R --temp_location gs://B/tmp.",
    )
    for kind in kinds:
        group = parser.add_argument_group((kind.__doc__ or "").strip().splitlines()[0].rstrip("."))
        for f in dataclasses.fields(kind):
            _add_flag(group, f, typing.get_type_hints(kind)[f.name])
    return parser


def _add_flag(group: Any, f: dataclasses.Field[Any], hint: Any) -> None:
    meta = f.metadata
    shown = "" if f.default in (None, False) else f" (default: {f.default})"
    common = {"default": None, "help": meta["help"].replace("%", "%%") + shown, "dest": f.name}
    plain = _plain_type(hint)
    if plain is bool:
        group.add_argument(
            f"--{f.name}", nargs="?", const=True, type=_parse_bool, metavar="true|false", **common
        )
    elif plain is tuple:
        group.add_argument(f"--{f.name}", nargs="+", metavar=meta["metavar"], **common)
    else:
        choices = meta["choices"] or None
        metavar = None if choices else meta["metavar"] or ("N" if plain is int else "VALUE")
        group.add_argument(f"--{f.name}", type=plain, choices=choices, metavar=metavar, **common)


def _plain_type(hint: Any) -> Any:
    """`int | None`, `tuple[str, ...]` -> int, tuple."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def parse(program: str, about: str, kinds: Sequence[type[Any]], argv: Sequence[str]) -> Parsed:
    """A command line -> Parsed. Raises UsageError; `--help` prints and exits."""
    known, beam_args = build_parser(program, about, kinds).parse_known_args(list(argv))
    groups: dict[type[Any], Any] = {}
    for kind in kinds:
        values = {}
        for f in dataclasses.fields(kind):
            value = getattr(known, f.name)
            if value is not None:
                values[f.name] = _checked(f, value)
        groups[kind] = kind(**values)
    return Parsed(groups, beam_args)


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    """A flag and its value -> the value, lists split at commas. Raises UsageError."""
    if isinstance(value, list):
        parts = tuple(part.strip() for item in value for part in item.split(",") if part.strip())
        if not parts:
            raise UsageError(f"--{f.name}: expected at least one value, got {' '.join(value)!r}")
        return parts
    regex = f.metadata["regex"]
    if regex and not re.fullmatch(regex, str(value)):
        raise UsageError(
            f"--{f.name}: {str(value)!r} cannot be; expected {f.metadata['help']} (as the pattern "
            f"{regex})"
        )
    return value


def require(program: str, **flags: Any) -> None:
    """Flags that a pipeline cannot do without -> nothing, or one UsageError with all missing."""
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if missing:
        example = " ".join(f"--{name} {name.upper()}" for name in flags)
        raise UsageError(
            f"missing {', '.join(missing)}; type: python -m pipelines.{program} {example}"
        )


def all_flags() -> set[str]:
    """Nothing -> every flag of every options class of this module."""
    kinds = (ModelOptions, SourceOptions, SinkOptions, FailureOptions, RunOptions)
    return {f"--{f.name}" for kind in kinds for f in dataclasses.fields(kind)}
