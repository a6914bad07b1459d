"""The plan of a scale test of a batch: which rows are scored, by which command, and where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from scale_tests.load.plan import Count, Instances, Rate, Rows, Seconds, Values

# Flags that the test sets itself, or that would hide which rows became what.
OWN_FLAGS = frozenset(
    (
        *("input_files", "input_format", "input_table", "input_query", "row_restriction"),
        *("partition_filter", "table_version", "id_column", "csv_delimiter", "csv_quote"),
        *("csv_escape", "csv_encoding", "output_files", "output_format", "output_table"),
        *("output_schema", "write_disposition", "dead_letter_files", "dead_letter_table"),
        *("run_id", "json_summary", "dry_run", "wait", "template_location", "help"),
    )
)
_DATASET = re.compile(r"([a-z0-9.:-]+[.:])?\w+")
# Also gs:/BUCKET, which would be a folder on this machine.
_ADDRESS = re.compile(r"\w+:/")
_WILD = re.compile(r"[*?\[]")
_BUCKET = re.compile(r"gs://[^/]")


class Batch(Values, frozen=True, kw_only=True):
    """The command that scores the rows, and what it must reach.

    Attributes:
        pipeline: The pipeline.
        flags: Its flags as one would type them, each word a text. The test adds those of the input
            and of the output. With `--runner DataflowRunner`, each run is a Dataflow job.
        format: The format of the rows and of the results, if they are files.
        min_rows_per_second: The smallest number of rows per second of a run, from the start of its
            command to its end; None for no limit.
        max_seconds: The longest time of a run; None for no limit.
    """

    pipeline: Literal["batch_local", "batch_vertex"] = "batch_local"
    flags: tuple[str, ...] = ()
    format: Literal["parquet", "jsonl", "csv"] = "parquet"
    min_rows_per_second: Rate | None = None
    max_seconds: Seconds | None = None

    def value_of(self, name: str) -> str | None:
        """Return the value of a flag, or None if it is not given."""
        for place, word in enumerate(self.flags):
            flag, equals, value = word.partition("=")
            if flag == f"--{name}":
                return value if equals else "".join(self.flags[place + 1 : place + 2])
        return None

    @property
    def on_dataflow(self) -> bool:
        """Whether the runs are Dataflow jobs."""
        runner = (self.value_of("runner") or "").rpartition(".")[2].lower()
        return runner.removesuffix("runner") == "dataflow"


class Offline(Values, frozen=True, kw_only=True, tag_field="kind", tag="offline"):
    """Rows that a batch scores as fast as it can.

    Attributes:
        rows: How many rows a run has, or a list of such numbers, each of which is a level.
        repeat: How often each number of rows is scored. Rounds over all numbers follow each other,
            so a machine that becomes slower shows in every level.
    """

    rows: Count | Annotated[tuple[Count, ...], Meta(min_length=1)]
    repeat: Annotated[int, Meta(ge=1, le=1_000)] = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows, in their order."""
        return self.rows if isinstance(self.rows, tuple) else (self.rows,)


class BatchGoal(Values, frozen=True, kw_only=True):
    """The rows for which time and cost of a run are estimated, and the machines of the test.

    Attributes:
        rows: The rows of one run.
        count: How many workers the tested batch has.
        vcpu: The vCPUs of each.
        memory_gb: The memory of each.
        usd_per_hour: The price of each. On Dataflow, the list price is the default.
    """

    rows: Count
    count: Annotated[int, Meta(ge=1, le=10_000)] = 1
    vcpu: Annotated[int, Meta(ge=1, le=1_024)] = 4
    memory_gb: Annotated[float, Meta(gt=0, le=100_000)] = 15.0
    usd_per_hour: Annotated[float, Meta(gt=0, le=100_000)] | None = None


class BatchPlan(Values, frozen=True, kw_only=True):
    """A scale test of a batch.

    Attributes:
        target: What is tested.
        send_to: Where the test puts its rows and the results: a folder on this machine or in Cloud
            Storage, which has a `/`, or a dataset of BigQuery.
        seed: What random rows follow from.
        batch: The command.
        rows: The rows.
        goal: The rows for which time and cost are estimated, or None.
        phases: The phases, in their order.
    """

    target: Literal["batch"]
    send_to: str = ""
    seed: Annotated[int, Meta(ge=0)] = 1
    batch: Batch
    rows: Rows = Rows()
    goal: BatchGoal | None = None
    phases: Annotated[tuple[Offline, ...], Meta(min_length=1)]

    @property
    def in_tables(self) -> bool:
        """Whether rows and results are in tables."""
        return "/" not in self.send_to


def batch_contradictions(plan: BatchPlan) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what does not fit together in the plan of a batch, each with its place."""
    if not plan.send_to:
        yield (
            ("target",),
            "send_to is missing: name a folder for rows and results, such as ./scale-test or "
            "gs://BUCKET/FOLDER, or a dataset of BigQuery",
        )
    elif _ADDRESS.match(plan.send_to) and not _BUCKET.match(plan.send_to):
        yield (
            ("send_to",),
            "send_to: expected a folder on this machine or in Cloud Storage (gs://BUCKET/FOLDER), "
            f"got {plan.send_to!r}",
        )
    elif _WILD.search(plan.send_to) or not plan.send_to.isprintable():
        yield (
            ("send_to",),
            "send_to: expected a folder without wildcards (*, ? and [) and control characters, "
            f"got {plan.send_to!r}",
        )
    elif plan.in_tables and not _DATASET.fullmatch(plan.send_to):
        yield (
            ("send_to",),
            f"send_to: expected a folder (with a /), dataset or project.dataset, "
            f"got {plan.send_to!r}",
        )
    yield from _wrong_flags(plan.batch.flags)
    if plan.rows.instance_format != Rows().instance_format:
        place: Instances = plan.rows.instance_format
        yield (
            ("rows", "instance_format"),
            f"rows.instance_format: a batch sends no requests; remove it, got {place!r}",
        )
    for number, phase in enumerate(plan.phases):
        if len({*phase.sizes}) < len(phase.sizes):
            yield (
                ("phases", number, "rows"),
                f"phases[{number}].rows: expected different numbers; repeat = 3 runs each of them "
                "three times",
            )


def _wrong_flags(flags: tuple[str, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for number, word in enumerate(flags):
        place = ("batch", "flags", number)
        named = f"batch.flags[{number}]"
        name, *_ = word.removeprefix("--").partition("=")
        if not number and not word.startswith("--"):
            yield place, f"{named}: expected a flag such as --model, got {word!r}"
        elif "\0" in word:
            yield place, f"{named}: expected text without the character \\u0000, got {word!r}"
        elif word.startswith("--") and name in OWN_FLAGS:
            yield place, f"{named}: the test sets --{name} itself, or needs its default; remove it"
        elif word.startswith("--") and " " in name:
            first, _, rest = word.partition(" ")
            yield (
                place,
                f"{named}: expected a flag and its value as two texts, "
                f'"{first}", "{rest}", got {word!r}',
            )
