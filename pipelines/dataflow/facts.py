"""What a job says of itself, for whoever attaches to it later, from any machine.

The facts are pipeline options of the job, which Dataflow keeps and the console shows: in the
answer of `jobs.get` with JOB_VIEW_ALL they are `environment.sdkPipelineOptions.options`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import UsageError

if TYPE_CHECKING:
    from transforms.provenance import Provenance

PREFIX = "millrace_"
# Source: Dataflow's documentation of labels.
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """The facts of a run that goes on elsewhere.

    model: its name and version. report: where a batch run writes its report at its end.
    staging: folders in which a batch run that did not end well left files.
    max_dead_letter_share: above which the run counts as failed. subscription: that a stream
    reads; the label that says so is to be removed when it has ended. attempt: the token with
    which the names of a batch run's staged files begin; attempts at one run share the folders.
    """

    pipeline: str
    run_id: str
    model: str
    model_digest: str
    report: str | None = None
    staging: tuple[str, ...] = ()
    max_dead_letter_share: float = 1.0
    subscription: str | None = None
    attempt: str | None = None

    @classmethod
    def of(cls, provenance: Provenance, **others: Any) -> JobFacts:
        """What every row carries, and the other facts -> the facts."""
        return cls(
            pipeline=provenance.pipeline,
            run_id=provenance.run_id,
            model=f"{provenance.model_name} {provenance.model_version}",
            model_digest=provenance.model_digest,
            **others,
        )

    def options(self) -> dict[str, Any]:
        """The facts by the names of pipeline options; what is None is left out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["staging"] = list(self.staging)
        return {PREFIX + name: value for name, value in values.items() if value is not None}

    def labels(self) -> dict[str, str]:
        """The labels of the job, in Dataflow's characters."""
        values = {
            "pipeline": self.pipeline,
            "run": self.run_id,
            "model": self.model,
            "digest": self.model_digest[:16],
        }
        return {PREFIX + name: label_value(value) for name, value in values.items()}


def option_names() -> list[str]:
    """The names of the pipeline options that carry the facts."""
    return [PREFIX + f.name for f in dataclasses.fields(JobFacts)]


def read_facts(options: Mapping[str, Any]) -> JobFacts | None:
    """`options` of a job's environment -> its facts, None where the job is none of ours."""
    given = {
        f.name: options[PREFIX + f.name]
        for f in dataclasses.fields(JobFacts)
        if options.get(PREFIX + f.name) is not None
    }
    if not {"pipeline", "run_id", "model", "model_digest"} <= given.keys():
        return None
    return JobFacts(**given | {"staging": tuple(given.get("staging", ()))})


def label_value(text: str) -> str:
    """Any text -> the nearest that a label of Google Cloud may hold."""
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:63]


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """--labels, each KEY=VALUE or, as the service itself gives them, a dict -> the labels.

    Raises UsageError.
    """
    labels: dict[str, str] = {}
    for text in texts:
        if _LABEL.fullmatch(text):
            key, _, value = text.partition("=")
            labels[key] = value
        else:
            labels |= _labels_of_dict(text)
    return labels


def _labels_of_dict(text: str) -> dict[str, str]:
    """A dict as Beam reads it -> itself. Raises UsageError."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if isinstance(found, dict) and all(isinstance(v, str) for kv in found.items() for v in kv):
        return found
    raise UsageError(
        f"--labels {text}: expected KEY=VALUE of small letters, digits, _ and -, a letter first"
    )
