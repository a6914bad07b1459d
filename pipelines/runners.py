"""Which runner a pipeline gets, by the name that `--runner` gives it. Pure: none is loaded.

A stream runs where Pub/Sub is read so that no message gets lost: on Dataflow, or in this process
by PullMessages. Beam's other runners either have no source for Pub/Sub, and then fail late or wait
for ever, or acknowledge messages before anything is done with them. PortableRunner leaves it to a
job service which it is, and no job service of Beam reads Pub/Sub. A runner of somebody else, named
by the path of its class, is taken at its word.
"""

from __future__ import annotations

from apache_beam.options.pipeline_options import StandardOptions

from common.errors import UsageError, suggest

DATAFLOW = "DataflowRunner"
IN_PROCESS = "FnApiRunner"
IN_PROCESS_STREAM = "BundleBasedDirectRunner"

_KNOWN = tuple(StandardOptions.KNOWN_RUNNER_NAMES)
# Beam has it without naming it.
_DASK = "DaskRunner"
# By default they download another runner, Prism, and start it beside this process.
_DIRECT = ("DirectRunner", "SwitchingDirectRunner")
# As Beam takes them: in any case, and without their last word.
_BY_WORD = {
    word: name
    for name in (*_KNOWN, _DASK)
    for word in (name.lower(), name.lower().removesuffix("runner"))
}


def choose_runner(name: str | None, *, streaming: bool) -> str:
    """The value of `--runner`, None where it is not given -> the runner, as Beam takes its name.

    Raises UsageError for one that Beam does not have, or that does not fit.
    """
    runner = None if name is None else _full_name(name)
    if runner is None or runner in _DIRECT:
        return IN_PROCESS_STREAM if streaming else IN_PROCESS
    if streaming:
        _check_reads_pubsub(str(name), runner)
    if runner == _DASK:
        raise UsageError(
            f"--runner {name} loses rows: Beam's {_DASK} drops what steps give at the end of a "
            "bundle (seen with Beam 2.77); choose another runner, or leave --runner out"
        )
    return runner


def is_dataflow(name: str | None) -> bool:
    """The name of a runner -> whether a pipeline becomes a job of Dataflow there."""
    return _BY_WORD.get(str(name).rpartition(".")[2].lower()) == DATAFLOW


def _full_name(name: str) -> str:
    """A runner's name as it was typed -> its class's, or the path of one that Beam does not name.

    Raises UsageError for a name that is neither.
    """
    path, _, word = name.rpartition(".")
    if path and not _is_beams(name):
        return name
    found = _BY_WORD.get(word.lower())
    if found is None and not path:
        raise UsageError(
            f"--runner {name}: expected one of {', '.join(_KNOWN)}{suggest(name, _KNOWN)}"
        )
    return found or name


def _is_beams(runner: str) -> bool:
    return "." not in runner or runner.startswith("apache_beam.")


def _check_reads_pubsub(given: str, runner: str) -> None:
    """A runner of a stream -> nothing, or UsageError."""
    if runner in (DATAFLOW, IN_PROCESS_STREAM) or not _is_beams(runner):
        return
    own = ""
    if runner == "PortableRunner":
        own = "; if your job service reads Pub/Sub, name a runner class of your own for it"
    raise UsageError(
        f"--runner {given} cannot read a stream from Pub/Sub: use {DATAFLOW}, or leave --runner "
        f"out to run in this process{own}"
    )
