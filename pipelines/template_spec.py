"""The spec file of a Flex Template: the launcher image of a pipeline, and its parameters.

python -m pipelines.template_spec batch_local --bucket B --image REPOSITORY@sha256:...
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from common.command_line import CommandParser
from common.errors import MillraceError, OutputError, UsageError, suggest
from common.terminal import print_error
from pipelines.metadata import TEMPLATES, template

if TYPE_CHECKING:
    from cloud.clients import Cloud

BY_DIGEST = re.compile(r"[^@\s]+/[^@\s]+@sha256:[0-9a-f]{64}")
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def template_container(metadata: dict[str, Any], image: str) -> dict[str, Any]:
    """Return the spec of a Flex Template, as Dataflow reads it.

    The workers use the image of the launcher, so both always run the same code. Source of the
    fields: Dataflow's ContainerSpec.

    Args:
        metadata: The metadata of the template.
        image: The image as REPOSITORY@sha256:DIGEST.

    Raises:
        UsageError: If the image is not named by its digest.
    """
    if not BY_DIGEST.fullmatch(image):
        raise UsageError(
            f"--image must be REPOSITORY@sha256:DIGEST in a registry, got {image!r}; a tag can "
            "later point to another image"
        )
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": metadata,
        "defaultEnvironment": {"sdkContainerImage": image},
    }


def write_spec(cloud: Cloud, bucket: str, name: str, spec: dict[str, Any]) -> str:
    """Write the spec of a Flex Template to Cloud Storage and return its address.

    Args:
        cloud: The Cloud that writes.
        bucket: The name of the bucket.
        name: The name of the pipeline. The object is `templates/NAME.json`.
        spec: The spec.

    Raises:
        OutputError: If the bucket does not exist or cannot be written.
        CredentialsError: If there are no usable credentials.
    """
    from google.api_core import exceptions

    from cloud.errors import retry, translate_errors

    path = f"templates/{name}.json"
    with translate_errors(OutputError, f"gs://{bucket}/{path} cannot be written"):
        try:
            cloud.storage().bucket(bucket).blob(path).upload_from_string(
                orjson.dumps(spec, option=orjson.OPT_INDENT_2),
                "application/json",
                retry=retry(cloud.retry_seconds),
            )
        except exceptions.NotFound as error:
            raise OutputError(
                f"bucket {bucket} does not exist: create it, or choose another"
            ) from error
    return f"gs://{bucket}/{path}"


def make_parser() -> CommandParser:
    """Return the parser of the command's flags."""
    parser = CommandParser(
        "pipelines.template_spec",
        "Write the spec file of a Flex Template, which names the launcher image of a pipeline and "
        "describes its parameters.",
    )
    parser.add_argument("pipeline", metavar="PIPELINE", help="name of the pipeline")
    parser.add_argument(
        "--bucket", required=True, help="bucket to write templates/PIPELINE.json to"
    )
    parser.add_argument("--image", required=True, help="launcher image: REPOSITORY@sha256:DIGEST")
    return parser


def _run(argv: Sequence[str]) -> str:
    flags = make_parser().parse_args(argv)
    templates = {command.name: command for command in TEMPLATES}
    if flags.pipeline not in templates:
        near = suggest(flags.pipeline, templates)
        raise UsageError(
            f"unknown pipeline {flags.pipeline!r}{near}; choose from {', '.join(templates)}"
        )
    bucket = flags.bucket.removeprefix("gs://").rstrip("/")
    if not BUCKET.fullmatch(bucket):
        raise UsageError(
            f"--bucket must be the name of a bucket, without a path, got {flags.bucket!r}"
        )
    from cloud.clients import Cloud

    spec = template_container(template(templates[flags.pipeline]), flags.image)
    return write_spec(Cloud("unnamed"), bucket, flags.pipeline, spec)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0 written, 1 not written, 2 wrong flags."""
    try:
        print(f"template  {_run(argv)}")
    except MillraceError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
