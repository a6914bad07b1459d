"""Private names of Beam that are needed for a run on any runner.

They are Beam's option parser, its source for Pub/Sub and its access to Cloud Storage.
tests/test_private_beam.py lists the names and fails if a release of Beam moves one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NoReturn

from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from common.command_line import in_words
from common.errors import UsageError

# Options that travel with a job, but that users cannot pass as flags.
_carried: set[type[PipelineOptions]] = set()


class FlagParser(_BeamArgumentParser):
    """Beam's parser, except that it raises UsageError instead of printing all flags and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message in words."""
        raise UsageError(in_words(message))

    def flags(self) -> dict[str, bool]:
        """Return every flag, and whether it takes a value."""
        return {flag: action.nargs != 0 for flag, action in self._option_string_actions.items()}


def flag_parser() -> FlagParser:
    """Return the parser of all flags of Beam and its runners."""
    return _parser_of(tuple(k for k in PipelineOptions.__subclasses__() if k not in _carried))


@functools.lru_cache(maxsize=1)
def _parser_of(kinds: tuple[type[PipelineOptions], ...]) -> FlagParser:
    # Building it takes longer than parsing with it.
    parser = FlagParser(allow_abbrev=False)
    for kind in kinds:
        kind._add_argparse_args(parser)
    return parser


def carried_options(names: Iterable[str]) -> type[PipelineOptions]:
    """Return a view of pipeline options with these names, which no command accepts as flags."""
    names = tuple(names)

    class CarriedOptions(PipelineOptions):
        """Options that travel with a job."""

        @classmethod
        def _add_argparse_args(cls, parser: Any) -> None:
            for name in names:
                parser.add_argument(f"--{name}")

    _carried.add(CarriedOptions)
    return CarriedOptions


def serialized_source(reading: ReadFromPubSub) -> Any:
    """Return the source inside Beam's transform for Pub/Sub, which emits serialized messages."""
    return reading._source


def storage_client(path: str) -> Any:
    """Return the client of Cloud Storage with which Beam reads the object at this path."""
    return FileSystems.get_filesystem(path)._gcsIO().client


def use_no_credentials() -> None:
    """Make Beam use anonymous credentials."""
    from apache_beam.internal.gcp import auth

    auth._Credentials._credentials_init = True
