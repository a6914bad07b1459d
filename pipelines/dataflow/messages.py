"""Why a job failed: its messages, shortened to a few lines that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote

from pipelines.command import find_raised, last_line

# Dataflow puts an id before some of its messages.
_ID = re.compile(r"^\([0-9a-f]{8,}\): ")
_TRACEBACK = "Traceback (most recent call last)"
# Messages that only say that something failed, or that something else had failed before.
_EMPTY = re.compile(
    r"a work item (has failed|was attempted)|^Workflow failed\.?$|^S\d+:.*failed\.?$"
    r"|Workers? .* (shut|stopp)|Step setup_resource",
    re.IGNORECASE,
)
_ADVICE = (
    (
        r"quota",
        "raise the quota in the console, or request less with --max_num_workers, --machine_type or "
        "another --region",
    ),
    (
        r"ZONE_RESOURCE_POOL_EXHAUSTED|does not have enough resources|stockout",
        "the zone has no capacity for these machines at the moment: try another --machine_type, "
        "--worker_zone or --region",
    ),
    (
        r"(image|container).*(not found|pull|does not exist|denied|unauthori)|ImagePull",
        "check --sdk_container_image, and that the workers' service account may read the image "
        "(roles/artifactregistry.reader)",
    ),
    (
        r"failed to install (required packages|requirements|extra package)",
        "the workers must reach PyPI and download.pytorch.org to install packages; or build an "
        "image (`make image`) and add --sdk_container_image IMAGE",
    ),
    (
        r"No module named",
        "the workers lack this package: build their image with `make image` from the version that "
        "starts the job, or leave out --sdk_container_image, and the workers install Millrace",
    ),
    (
        r"launcher",
        "see the launcher's log for details",
    ),
    (
        r"subnetwork|network .*not|private google access",
        "check --subnetwork: it must be in the job's region, and with --no_use_public_ips it needs "
        "Private Google Access",
    ),
    (
        r"KMS|cryptoKey",
        "the service agents of Dataflow and Compute Engine need "
        "roles/cloudkms.cryptoKeyEncrypterDecrypter on --dataflow_kms_key",
    ),
    (
        r"service account|actAs",
        "check --service_account_email: the account needs roles/dataflow.worker, and you need "
        "roles/iam.serviceAccountUser on it",
    ),
    (
        r"compatib|transform_name_mapping|transformNameMapping",
        "name each renamed step in --transform_name_mapping, or drain the old job and start the "
        "new one without --update; a step that is mapped to an empty name loses its state",
    ),
)
_CONSOLE_LOG = re.compile(r"gs://\S+/console_logs")


def reasons(texts: Sequence[str], news: Sequence[str] = (), most: int = 3) -> list[str]:
    """Return why a job failed, in a few lines, with a line of advice if the reason is known.

    A traceback is shortened to its last line. Messages that only say that something failed are
    left out unless there are no others.

    Args:
        texts: The job's error messages, oldest first.
        news: All other messages of the job.
        most: The maximum number of reasons to return. The last ones are kept.
    """
    causes: dict[str, None] = {}
    empty: dict[str, None] = {}
    for text in texts:
        for cause in re.split(r",? Causes?: |, (?=S\d+:)", _last_line(text)):
            line = _ID.sub("", cause.strip())
            if line:
                (empty if _EMPTY.search(line) else causes)[line] = None
    lines = list(causes or empty)[-most:]
    log = next((found[0] for text in news if (found := _CONSOLE_LOG.search(text))), None)
    advice = next((a for pattern, a in _ADVICE if _mentions(pattern, lines)), "")
    if log and _mentions("launcher", lines):
        advice = f"read the launcher's log: gcloud storage cat {quote(log)}"
    return [*(_short(line) for line in lines), *([advice] if advice else [])]


def _mentions(pattern: str, lines: Sequence[str]) -> bool:
    return any(re.search(pattern, line, re.IGNORECASE) for line in lines)


def _last_line(text: str) -> str:
    """Return a message in one line: of a traceback, Millrace's own error, or the last line."""
    ours = find_raised(text)
    if ours is not None:
        return str(ours)
    return last_line(text) if _TRACEBACK in text else " ".join(text.split())


def _short(line: str, limit: int = 400) -> str:
    return line if len(line) <= limit else f"{line[:limit]}..."
