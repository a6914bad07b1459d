"""The file of a Flex Template: which image launches a pipeline, and with which parameters.

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
from pipelines.metadata import TEMPLATES, template

if TYPE_CHECKING:
    from cloud.clients import Cloud

BY_DIGEST = re.compile(r"[^@\s]+/[^@\s]+@sha256:[0-9a-f]{64}")
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def template_container(metadata: dict[str, Any], image: str) -> dict[str, Any]:
    """A template's metadata, an image by its digest -> the spec that Dataflow reads.

    The workers get the launcher's image, so that both have the same code for ever. Source of
    the fields: Dataflow's ContainerSpec. Raises UsageError.
    """
    if not BY_DIGEST.fullmatch(image):
        raise UsageError(
            f"--image {image!r}: expected REPOSITORY@sha256:DIGEST of a registry; a tag may "
            "come to mean another image"
        )
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": metadata,
        "defaultEnvironment": {"sdkContainerImage": image},
    }


def write_spec(cloud: Cloud, bucket: str, name: str, spec: dict[str, Any]) -> str:
    """A spec -> its address in Cloud Storage. Raises OutputError, CredentialsError."""
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
            raise OutputError(f"there is no bucket {bucket}: make it, or name another") from error
    return f"gs://{bucket}/{path}"


def _run(argv: Sequence[str]) -> str:
    parser = CommandParser(
        "pipelines.template_spec",
        "Write the file of a Flex Template: which image launches a pipeline, and with which "
        "parameters.",
    )
    parser.add_argument("pipeline", metavar="PIPELINE")
    parser.add_argument("--bucket", required=True, help="bucket for templates/PIPELINE.json")
    parser.add_argument("--image", required=True, help="image as REPOSITORY@sha256:DIGEST")
    flags = parser.parse_args(argv)
    templates = {command.name: command for command in TEMPLATES}
    if flags.pipeline not in templates:
        near = suggest(flags.pipeline, templates)
        raise UsageError(f"{flags.pipeline}: expected one of {', '.join(templates)}{near}")
    bucket = flags.bucket.removeprefix("gs://").rstrip("/")
    if not BUCKET.fullmatch(bucket):
        raise UsageError(f"--bucket {flags.bucket!r}: expected a bucket's name alone")
    from cloud.clients import Cloud

    spec = template_container(template(templates[flags.pipeline]), flags.image)
    return write_spec(Cloud("unnamed"), bucket, flags.pipeline, spec)


def main(argv: Sequence[str]) -> int:
    """The command line -> the exit code: 0 written, 1 not written, 2 wrong flags."""
    try:
        print(f"template  {_run(argv)}")
    except MillraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
