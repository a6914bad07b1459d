"""Forms of flag values: a pattern for Flex Templates, and the same rule in words for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """The form that the value of a flag must have.

    Attributes:
        regex: A pattern that the whole value matches. The Dataflow console checks it as well.
        must: The rule in words, as an error states it after `--batch_rows must`.
    """

    regex: str
    must: str


AT_LEAST_0 = Form(r"\d+", "be at least 0")
AT_LEAST_1 = Form(r"[1-9]\d*", "be at least 1")
# Clocks and timestamps cannot hold any number of seconds.
DURATION = Form(r"[1-9]\d{0,8}", "be from 1 to 999999999")
# At most a day.
SECONDS_OF_DAY = Form(
    r"[1-9]\d{0,3}|[1-7]\d{4}|8[0-5]\d{3}|86[0-3]\d{2}|86400", "be from 1 to 86400"
)
SHARE = Form(r"0(\.\d+)?|1(\.0+)?", "be a number from 0 to 1")
SHA256 = Form(r"(sha256:)?[0-9a-fA-F]{64}", "be 64 hexadecimal digits")
DEVICE = Form(r"auto|cpu|cuda(:\d+)?", "be auto, cpu, cuda or cuda:N")
HTTP_URL = Form(r"https?://.+", "begin with http:// or https://")
SUBSCRIPTION = Form(r"projects/[^/]+/subscriptions/[^/]+", "be projects/PROJECT/subscriptions/NAME")
TOPIC = Form(r"projects/[^/]+/topics/[^/]+", "be projects/PROJECT/topics/NAME")
DATASET = Form(
    r"(([a-z0-9.-]+:)?[a-z][a-z0-9-]*[a-z0-9]\.)?[A-Za-z0-9_]+",
    "be the name of a dataset, as project.dataset",
)
RUN_ID = Form(
    r"[A-Za-z0-9][A-Za-z0-9._+:=-]{0,127}",
    "start with a letter or digit, and have at most 128 letters, digits and . _ + : = -",
)
GCS_PATH = Form(r"gs://[^/]+/.+", "be gs://BUCKET/PATH")
ACCELERATOR = Form(
    r"nvidia-[a-z0-9-]+(:[1-9]\d?)?", "be a GPU type such as nvidia-l4, or TYPE:COUNT"
)
CHARACTER = Form(r"[!-~]|none", "be one ASCII character, or none")
DELIMITER = Form(r"[!-~]|tab|space|\\t", "be one ASCII character, tab or space")
