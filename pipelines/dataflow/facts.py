"""The facts that a Dataflow job carries, which `launch --attach` reads on any machine.

The facts are pipeline options of the job. Dataflow keeps them, and the console shows them. The
response of `jobs.get` with JOB_VIEW_ALL has them in `environment.sdkPipelineOptions.options`.
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
# Source: the documentation of Dataflow's labels.
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """The facts of a run that Dataflow executes.

    Attributes:
        model: The name and version of the model.
        report: Where a batch run writes its report when it ends.
        staging: Folders in which a batch run leaves staged files if it does not end well.
        max_dead_letter_share: The share of dead letters above which the run counts as failed.
        min_rows: The number of rows below which the run counts as failed.
        subscription: The subscription that a stream reads. When the stream has ended, the label
            that names it as the reader must be removed.
        attempt: The token with which the names of a batch run's staged files start. Attempts at
            one run share the folders.
        thresholds: The thresholds that differ from those of the package, as the flag has them.
    """

    pipeline: str
    run_id: str
    model: str
    model_digest: str
    report: str | None = None
    staging: tuple[str, ...] = ()
    max_dead_letter_share: float = 1.0
    min_rows: int = 0
    subscription: str | None = None
    attempt: str | None = None
    thresholds: str | None = None

    @classmethod
    def of(cls, provenance: Provenance, **others: Any) -> JobFacts:
        """Return the facts of a run.

        Args:
            provenance: The pipeline, run id and model, as each row carries them.
            others: The remaining facts, by field name.
        """
        return cls(
            pipeline=provenance.pipeline,
            run_id=provenance.run_id,
            model=f"{provenance.model_name} {provenance.model_version}",
            model_digest=provenance.model_digest,
            **others,
        )

    def options(self) -> dict[str, Any]:
        """Return the facts that are not None, by the names of pipeline options."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["staging"] = list(self.staging)
        return {PREFIX + name: value for name, value in values.items() if value is not None}

    def labels(self) -> dict[str, str]:
        """Return the labels of the job, with only the characters that Dataflow allows."""
        values = {
            "pipeline": self.pipeline,
            "run": self.run_id,
            "model": self.model,
            "digest": self.model_digest[:16],
        }
        return {PREFIX + name: label_value(value) for name, value in values.items()}


def option_names() -> list[str]:
    """Return the names of the pipeline options that carry the facts."""
    return [PREFIX + f.name for f in dataclasses.fields(JobFacts)]


def read_facts(options: Mapping[str, Any]) -> JobFacts | None:
    """Return the facts of a job, or None if Millrace did not start it.

    Args:
        options: The `options` in the `sdkPipelineOptions` of the job's environment.
    """
    given = {
        f.name: options[PREFIX + f.name]
        for f in dataclasses.fields(JobFacts)
        if options.get(PREFIX + f.name) is not None
    }
    if not {"pipeline", "run_id", "model", "model_digest"} <= given.keys():
        return None
    return JobFacts(**given | {"staging": tuple(given.get("staging", ()))})


def label_value(text: str) -> str:
    """Return a text as a Google Cloud label value, at most 63 characters long.

    Letters become lowercase, and each character that a label cannot hold becomes an underscore.
    """
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:63]


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """Return the labels that the values of `--labels` name.

    Args:
        texts: Each is KEY=VALUE, or a dict of several labels, as Dataflow itself passes them.

    Raises:
        UsageError: A text is neither.
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
    """Parse a dict of labels as Beam does. Raise UsageError for any other text."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if isinstance(found, dict) and all(isinstance(v, str) for kv in found.items() for v in kv):
        return found
    raise UsageError(
        f"--labels {text} is invalid: use KEY=VALUE, both of lowercase letters, digits, _ and -, "
        "with KEY starting with a letter"
    )
