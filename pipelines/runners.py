"""The choice of the runner from the name in `--runner`, without loading it.

A stream reads Pub/Sub by Google's own source on Dataflow, and elsewhere by PullMessages, an
unbounded splittable DoFn. The runners of _STREAMS support what it needs, and those of _BATCHES what
a batch needs; others of Beam fail late or hang. A runner that does not belong to Beam, given by the
path of its class, is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import StandardOptions

from common.errors import UsageError, similar, suggestion

DATAFLOW = "DataflowRunner"
IN_PROCESS = "FnApiRunner"
_STREAMS = (DATAFLOW, IN_PROCESS, "PrismRunner", "FlinkRunner")
_BATCHES = (*_STREAMS, "SparkRunner", "PortableRunner")

_DASK = "DaskRunner"
# Beam has DaskRunner, but does not list it.
_NAMES = (*StandardOptions.KNOWN_RUNNER_NAMES, _DASK)
# By default, the first two download another runner, Prism, and start it as a second process. The
# third is an old runner of streams.
_DIRECT = ("DirectRunner", "SwitchingDirectRunner", "BundleBasedDirectRunner")
# Beam accepts the names in upper or lower case, with or without `Runner` at the end.
_BY_SHORT_WORD = {name.lower().removesuffix("runner"): name for name in _NAMES}
_BY_WORD = {name.lower(): name for name in _NAMES} | _BY_SHORT_WORD


def choose_runner(name: str | None, *, streaming: bool) -> str:
    """Return the runner of a pipeline, by a name that Beam accepts.

    Args:
        name: The value of `--runner`, or None if it is not given.
        streaming: Whether the pipeline is a stream.

    Raises:
        UsageError: If Beam does not have the runner, or if it would lose rows or messages.
    """
    choices = _STREAMS if streaming else _BATCHES
    runner = None if name is None else _full_name(name, choices)
    if runner is None or runner in _DIRECT:
        return IN_PROCESS
    # A batch may run on a class of Beam without a name.
    is_judged = _is_beams(runner) if streaming else runner in _NAMES
    if runner in choices or not is_judged:
        return runner
    if runner == _DASK and not streaming:
        raise UsageError(
            f"--runner {name} loses rows: Beam's {_DASK} drops the elements that a step emits at "
            "the end of a bundle (seen with Beam 2.77); choose another runner, or leave "
            "out --runner"
        )
    what = "read a stream from Pub/Sub" if streaming else "run batches"
    raise UsageError(
        f"--runner {name} cannot {what}: use one of {', '.join(choices)}, or leave out --runner to "
        "run in this process"
    )


def is_dataflow(name: str | None) -> bool:
    """Return whether a pipeline becomes a Dataflow job with the runner of this name."""
    return _BY_WORD.get(str(name).rpartition(".")[2].lower()) == DATAFLOW


def _full_name(name: str, choices: Sequence[str]) -> str:
    """Return Beam's own name for a runner, or the path of a class that Beam does not list.

    Raises UsageError, with the runners to choose from, if the name is neither.
    """
    path, _, word = name.rpartition(".")
    if path and not _is_beams(name):
        return name
    found = _BY_WORD.get(word.lower())
    if found is None and not path:
        # With the common end of all names, every name would be similar.
        short = [key for key, full in _BY_SHORT_WORD.items() if full in choices]
        close = similar(name.lower().removesuffix("runner"), short)
        like = suggestion(_BY_SHORT_WORD[word] for word in close)
        raise UsageError(f"unknown --runner {name}{like}; choose from {', '.join(choices)}")
    return found or name


def _is_beams(runner: str) -> bool:
    return "." not in runner or runner.startswith("apache_beam.")
