"""Reads millrace.toml, which says what to set up, where, and under which names."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cloud.regions import region_fault
from common.errors import UsageError, suggest

CONFIG_NAME = "millrace.toml"
# The pipelines, with the end of the reference's names for their result tables.
_RESULTS = {
    "batch_local": "batch_results",
    "batch_vertex": "batch_results_vertex",
    "stream_local": "streaming_results",
    "stream_vertex": "streaming_results_vertex",
}
PIPELINES = tuple(_RESULTS)
SCHEMAS = ("default", "reference")

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_PATTERNS = {
    # The key of a label has at most 63 characters. CONFIG_LABEL takes 16 of them.
    "name": (
        r"[a-z0-9][a-z0-9_-]{0,46}",
        "1 to 47 characters: a-z, 0-9, _ and -, starting with a letter or digit",
    ),
    # The id of a domain-scoped project starts with its domain.
    "project": (
        r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]",
        "6 to 30 characters: a-z, 0-9 and -, starting with a letter and not ending with -",
    ),
    "location": (r"[A-Za-z]+[A-Za-z0-9-]*", "a region, or a multi-region such as US"),
    "bucket": (
        r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]",
        "3 to 63 characters: a-z, 0-9, . _ and -, starting and ending with a letter or digit",
    ),
    "dataset": (r"\w{1,1024}", "letters, digits and _"),
    # Pub/Sub reserves names that start with goog.
    "prefix": (
        r"(?!goog)[a-z][a-z0-9-]{1,60}[a-z0-9]",
        "3 to 62 characters: a-z, 0-9 and -, starting with a letter but not with goog, and not "
        "ending with -",
    ),
    "folder": (
        r"[\w.-]+(/[\w.-]+)*",
        "a path such as frameworks/model, without / at the start or the end",
    ),
    "job_prefix": (
        r"[a-z]([a-z0-9-]*[a-z0-9])?",
        "a-z, 0-9 and -, starting with a letter and not ending with -",
    ),
    "source_table": (r"\w{1,1024}", "letters, digits and _"),
    "service_account": (
        r"[a-z][a-z0-9-]{4,28}[a-z0-9]",
        "6 to 30 characters: a-z, 0-9 and -, starting with a letter and not ending with -",
    ),
}


# The default name of a configuration is derived from the fields that name or place a resource or a
# job. The others (pipelines, labels, model) may change without making it another configuration.
_NAMING = (
    *("region", "bucket", "dataset", "prefix", "folder", "job_prefix", "source_table"),
    "service_account",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The contents of millrace.toml, with the reference's names as defaults.

    Attributes:
        project: The id of the project.
        region: The region of the registered model.
        location: The location of bucket and dataset, by default the region.
        bucket: By default the id of the project, without its domain.
        prefix: The start of the names of topics and subscriptions, and of tables with `_` for `-`.
        folder: The folder in the bucket that holds all files of Millrace.
        job_prefix: The start of the names of Dataflow jobs.
        source_table: The table that `--load_example` fills.
        tables: The names of result tables, by pipeline. The others have the reference's names.
        output_schema: The columns of the result tables, as in the flag `--output_schema`.
        service_account: The part before the @ of the account that workers run as.
        model: The path of the package to upload, None to upload none.
        trusted_modules: Top-level Python modules that the package may import.
        labels: Labels for every resource that can carry some.
        pipelines: The pipelines whose resources are declared.
        name: Distinguishes the configurations of a project. Setup adds a label with this name to
            every resource that can carry one.
    """

    project: str
    region: str = "us-central1"
    location: str = ""
    bucket: str = ""
    dataset: str = "frameworks"
    prefix: str = "pytorch-autoencoder"
    folder: str = "frameworks/pytorch-autoencoder/dataflow"
    job_prefix: str = "pytorch"
    source_table: str = "frameworks"
    service_account: str = "millrace-worker"
    model: str | None = None
    trusted_modules: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    output_schema: str = "reference"
    pipelines: tuple[str, ...] = PIPELINES
    name: str = ""

    def __post_init__(self) -> None:
        """Derive the fields that are empty, and raise UsageError if any field is invalid."""
        object.__setattr__(self, "location", self.location or self.region)
        # The name of a bucket cannot contain the domain of a domain-scoped project.
        object.__setattr__(self, "bucket", self.bucket or self.project.rpartition(":")[2])
        object.__setattr__(self, "name", self.name or self._default_name())
        if fault := region_fault(self.region):
            raise UsageError(f"region = {fault}")
        if "-" in self.location and (fault := region_fault(self.location.lower())):
            raise UsageError(f"location = {fault}")
        for name, (pattern, expected) in _PATTERNS.items():
            value = getattr(self, name)
            if not re.fullmatch(pattern, value, re.ASCII):
                raise UsageError(f"{name} = {value!r}: expected {expected}")
        for key, value in self.labels.items():
            if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)):
                raise UsageError(
                    f"label {key} = {value!r}: expected a key and a value of at most 63 characters "
                    "(a-z, 0-9, _ and -), the key starting with a letter"
                )
        self._check_tables()
        # Imported only here, because --help must not wait for NumPy and Arrow.
        from model_handlers.trusted_code import check_module_names

        check_module_names(self.trusted_modules)
        check_pipelines(self.pipelines, "pipelines")

    def table_of(self, pipeline: str) -> str:
        """Return the name of the table for the results of a pipeline, without its dataset."""
        return self.tables.get(pipeline, f"{self.prefix.replace('-', '_')}_{_RESULTS[pipeline]}")

    def _check_tables(self) -> None:
        """Raise UsageError if the result tables are misnamed, or if two kinds of rows share one."""
        if self.output_schema not in SCHEMAS:
            raise UsageError(
                f"output_schema = {self.output_schema!r}: expected {' or '.join(SCHEMAS)}"
            )
        for pipeline, name in self.tables.items():
            check_pipelines((pipeline,), "tables")
            if not re.fullmatch(r"\w{1,1024}", name, re.ASCII) or name == self.source_table:
                raise UsageError(
                    f"tables: {pipeline} = {name!r}: expected letters, digits and _, and another "
                    "name than that of the source table"
                )
        of_batch, of_streams = (
            {self.table_of(name) for name in PIPELINES if name.startswith(kind)}
            for kind in ("batch", "stream")
        )
        if shared := of_batch & of_streams:
            raise UsageError(
                f"tables: batch pipelines and streams write different columns, so they cannot "
                f"share {min(shared)}: choose another name for one of them"
            )

    def _default_name(self) -> str:
        """Return the start of the prefix and a digest of all fields that name or place anything."""
        named = "\n".join(getattr(self, field) for field in _NAMING)
        named += "".join(f"\n{pipeline}={name}" for pipeline, name in sorted(self.tables.items()))
        return f"{self.prefix[:38]}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"


def check_pipelines(names: tuple[str, ...], place: str) -> None:
    """Raise UsageError unless there is at least one name and every name is a pipeline.

    Args:
        names: The names to check.
        place: The key or flag that they come from, for the message.
    """
    if not names:
        raise UsageError(f"{place}: expected at least one of {', '.join(PIPELINES)}")
    for name in names:
        if name not in PIPELINES:
            raise UsageError(
                f"{place}: unknown pipeline {name!r}{suggest(name, PIPELINES)}; choose from "
                f"{', '.join(PIPELINES)}"
            )


def read_config(
    path: Path, given: Mapping[str, Any], find_project: Callable[[], str | None] = lambda: None
) -> Config:
    """Read the configuration file and combine it with the command line.

    Args:
        path: The configuration file. It may be missing if it has the default name.
        given: Values of the command line, by field of Config. They override the file; None means
            not given.
        find_project: Returns the project's id if neither the file nor the command line names it.

    Returns:
        The checked configuration.

    Raises:
        UsageError: The file cannot be read, a key is unknown, a value is invalid, or no project is
            known.
    """
    values = _read(path)
    known = {f.name: str(f.type) for f in fields(Config)}
    for name, value in values.items():
        if name not in known:
            raise UsageError(
                f"{path}: unknown key {name!r}{suggest(name, known)}; choose from "
                f"{', '.join(known)}"
            )
        _check_type(path, name, value, known[name])
    flags = {name: value for name, value in given.items() if value is not None}
    written = {*values} - {*flags}
    values |= flags
    if "project" not in values:
        values["project"] = find_project()
    if values["project"] is None:
        raise UsageError(f'no project: set project = "..." in {path}, or pass --project')
    for name, default in (("pipelines", PIPELINES), ("trusted_modules", ())):
        values[name] = tuple(values.get(name, default))
    try:
        return Config(**values)
    except UsageError as error:
        # The message names the file only if the value is from the file, not from a flag or from a
        # default.
        key = "labels" if str(error).startswith("label ") else re.split(r"\W", str(error))[0]
        raise UsageError(f"{path}: {error}" if key in written else str(error)) from error


def names_project(path: Path) -> bool:
    """Return whether the configuration file names the project."""
    return "project" in _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        if path == Path(CONFIG_NAME):
            return {}
        raise UsageError(f"--config {path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error


def _check_type(path: Path, name: str, value: Any, kind: str) -> None:
    if kind.startswith("Mapping"):
        expected, fine = (
            "a table of strings",
            isinstance(value, dict) and _all_texts(value.values()),
        )
    elif kind.startswith("tuple"):
        expected, fine = "a list of strings", isinstance(value, list) and _all_texts(value)
    else:
        expected, fine = "a string", isinstance(value, str)
    if not fine:
        raise UsageError(f"{path}: {name} = {value!r}: expected {expected}")


def _all_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
