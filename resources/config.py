"""millrace.toml: what is to be set up, where, and under which names."""

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
from model_handlers.formats.architecture import check_module_names

CONFIG_NAME = "millrace.toml"
PIPELINES = ("batch_local", "batch_vertex", "stream_local", "stream_vertex")

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_PATTERNS = {
    # Of 63 characters of a label's key, less those of CONFIG_LABEL.
    "name": (r"[a-z0-9][a-z0-9_-]{0,46}", "1 to 47 of a-z, 0-9, _ and -"),
    # A domain-scoped project has its domain before it.
    "project": (r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "6 to 30 of a-z, 0-9 and -"),
    "location": (r"[A-Za-z]+[A-Za-z0-9-]*", "a region or a multi-region as US"),
    "bucket": (r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", "3 to 63 of a-z, 0-9, ., _ and -"),
    "dataset": (r"\w{1,1024}", "letters, digits and _"),
    # Pub/Sub keeps the names that begin with goog for itself.
    "prefix": (r"(?!goog)[a-z][a-z0-9-]{1,60}[a-z0-9]", "3 to 62 of a-z, 0-9 and -, not goog..."),
    "folder": (r"[\w.-]+(/[\w.-]+)*", "a path as frameworks/model, without a / at its ends"),
    "job_prefix": (r"[a-z]([a-z0-9-]*[a-z0-9])?", "a-z, 0-9 and -"),
    "source_table": (r"\w{1,1024}", "letters, digits and _"),
    "service_account": (r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "6 to 30 of a-z, 0-9 and -"),
}


# What a configuration's default name is made of: whatever names or places a resource or a job. The
# rest (pipelines, labels, model) may change, and it is the same configuration.
_NAMING = (
    *("region", "bucket", "dataset", "prefix", "folder", "job_prefix", "source_table"),
    "service_account",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What millrace.toml says; the defaults are the reference's names.

    name: tells configurations of a project apart: what setup makes carries it as a label.
    location: of bucket and dataset, by default the region. bucket: by default named as the
    project. folder: of the bucket, that all files are in. prefix: of topics, subscriptions
    and, with _ for -, tables. model: the package to upload, None for none. trusted_modules:
    top-level names of those that its architecture may import.
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
    pipelines: tuple[str, ...] = PIPELINES
    name: str = ""

    def __post_init__(self) -> None:
        """Fills what follows from other fields. Raises UsageError."""
        object.__setattr__(self, "location", self.location or self.region)
        # A domain-scoped project's name cannot be a bucket's.
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
                    f"label {key} = {value!r}: expected small letters, digits, _ and -, 63 at most"
                )
        check_module_names(self.trusted_modules)
        check_pipelines(self.pipelines, "pipelines")

    def _default_name(self) -> str:
        """The beginning of the prefix, for people, and a digest of all that names or places."""
        named = "\n".join(getattr(self, field) for field in _NAMING)
        return f"{self.prefix[:38]}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"


def check_pipelines(names: tuple[str, ...], place: str) -> None:
    """Names of pipelines -> nothing, or UsageError for one that is none."""
    if not names:
        raise UsageError(f"{place}: expected some of {', '.join(PIPELINES)}")
    for name in names:
        if name not in PIPELINES:
            raise UsageError(
                f"{place}: {name!r} is no pipeline{suggest(name, PIPELINES)}: expected some of "
                f"{', '.join(PIPELINES)}"
            )


def read_config(
    path: Path, given: Mapping[str, Any], find_project: Callable[[], str | None] = lambda: None
) -> Config:
    """The config file, and what the command line says besides -> Config.

    A file of the default name may be missing. find_project: asked where neither names a
    project. Raises UsageError.
    """
    values = _read(path)
    known = {f.name: str(f.type) for f in fields(Config)}
    for name, value in values.items():
        if name not in known:
            raise UsageError(
                f"{path}: unknown key {name!r}{suggest(name, known)}: expected some of "
                f"{', '.join(known)}"
            )
        _check_type(path, name, value, known[name])
    flags = {name: value for name, value in given.items() if value is not None}
    written = {*values} - {*flags}
    values |= flags
    if "project" not in values:
        values["project"] = find_project()
    if values["project"] is None:
        raise UsageError(f'which project? say project = "..." in {path}, or --project')
    for name, default in (("pipelines", PIPELINES), ("trusted_modules", ())):
        values[name] = tuple(values.get(name, default))
    try:
        return Config(**values)
    except UsageError as error:
        # Of a flag, or of a default that follows from one, the file says nothing.
        key = "labels" if str(error).startswith("label ") else re.split(r"\W", str(error))[0]
        raise UsageError(f"{path}: {error}" if key in written else str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        if path == Path(CONFIG_NAME):
            return {}
        raise UsageError(f"--config {path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error


def _check_type(path: Path, name: str, value: Any, kind: str) -> None:
    if kind.startswith("Mapping"):
        expected, fine = "a table of texts", isinstance(value, dict) and _all_texts(value.values())
    elif kind.startswith("tuple"):
        expected, fine = "a list of texts", isinstance(value, list) and _all_texts(value)
    else:
        expected, fine = "a text", isinstance(value, str)
    if not fine:
        raise UsageError(f"{path}: {name} = {value!r}: expected {expected}")


def _all_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
