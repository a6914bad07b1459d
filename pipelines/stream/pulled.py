"""Run a stream that pulls its messages itself: in this process, on Prism or on Flink."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from contextlib import nullcontext

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.batch.in_process import silent_workers
from pipelines.beam_args import runs_in_process, shares_process
from pipelines.field_names import named_by_user
from pipelines.stream.config import StreamConfig
from pipelines.stream.graph import ScoreStream
from pipelines.stream.in_process import Reading, follow, watch
from transforms.json_rows.row_format import RowFormat
from transforms.messages.intake import PullOptions, open_intake
from transforms.messages.pull import PullMessages


def run_pulled(
    options: PipelineOptions,
    config: StreamConfig,
    score: functools.partial[ScoreStream],
    reading: Reading,
) -> None:
    """Run a stream to its end.

    Args:
        options: Beam's options, with a runner other than Dataflow.
        config: The configuration of the stream.
        score: The graph without its source.
        reading: The subscription, and the run as its reader.

    Raises:
        MillraceError: The run has failed.
        KeyboardInterrupt: The run was stopped before it had written what it received.
    """
    pipeline = beam.Pipeline(options=options)
    source = pulled_source(config, reading)
    pipeline | "ScoreStream" >> pulled_graph(score, source)
    with (
        nullcontext() if config.run.debug else silent_workers(),
        open_intake(source.options) as intake,
    ):
        report = functools.partial(
            watch, intake=intake, reading=reading, options=config.run, names=expected_names(score)
        )
        if runs_in_process(options):
            # Imported only here, because runs elsewhere do not need the runner that it imports.
            from common.private_beam.in_process import dropped_metrics

            with dropped_metrics():
                # This runner does its work in `run`.
                report(lambda: pipeline.run().wait_until_finish())
            return
        # Imported only here, because other runs do not need the runners that it imports.
        from pipelines.batch.elsewhere import run_elsewhere

        def wait(until_end: Callable[[], None]) -> None:
            if shared:
                report(until_end)
            else:
                follow(until_end, reading)

        # Beam changes the options when it starts a job.
        shared = shares_process(options)
        run_elsewhere(pipeline, options, wait, debug=config.run.debug)


def pulled_graph(score: functools.partial[ScoreStream], source: PullMessages) -> ScoreStream:
    """Return the graph of a stream with a source that gathers and deduplicates itself."""
    return score(
        source=source,
        names=expected_names(score),
        in_stage=True,
        deduplicate_seconds=None,
        max_batch_wait_ms=None,
    )


def pulled_source(config: StreamConfig, reading: Reading) -> PullMessages:
    """Return the source of a stream.

    Args:
        config: The configuration of the stream.
        reading: The subscription, and the run as its reader.
    """
    options = PullOptions(
        cloud=reading.cloud,
        subscription=reading.subscription,
        # A worker process may live longer than a run.
        run=f"{reading.reader}-{uuid.uuid4().hex}",
        wait_seconds=(config.max_batch_wait_ms or 0) / 1000,
        wait_messages=config.model.batch_rows,
        remember_seconds=config.deduplicate_seconds,
        remember_attribute=config.deduplicate_attribute,
        stop_after_seconds=config.run.stop_after_seconds,
        hidden_seconds=reading.hidden_seconds,
    )
    return PullMessages(options, config.readers or 1)


def expected_names(score: functools.partial[ScoreStream]) -> dict[str, str]:
    """Return the names that rows are expected to have, and the flag that names each."""
    own: RowFormat = score.keywords["message_format"].row_format
    return named_by_user(own.manifest, own.id_column, own.keep)
