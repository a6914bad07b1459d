"""What a run on any runner needs of Beam, and Beam does not promise: its option parser, its
source for Pub/Sub, its access to Cloud Storage.

tests/test_private_beam.py lists the names, and fails for each that a release of Beam moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from common.errors import UsageError

# Options that jobs carry, and that nobody types.
_carried: set[type[PipelineOptions]] = set()


class FlagParser(_BeamArgumentParser):
    """Beam's parser, which by itself prints all flags and exits where a value is wrong."""

    def error(self, message: str) -> NoReturn:
        """A fault -> UsageError that says it in one line."""
        message = message.removeprefix("argument ")
        raise UsageError(message.replace("invalid loads value", "invalid JSON"))

    def flags(self) -> dict[str, bool]:
        """Nothing -> every flag, and whether it takes a value."""
        return {flag: action.nargs != 0 for flag, action in self._option_string_actions.items()}


def flag_parser() -> FlagParser:
    """Nothing -> the parser of all flags of Beam and its runners."""
    parser = FlagParser(allow_abbrev=False)
    for kind in PipelineOptions.__subclasses__():
        if kind not in _carried:
            kind._add_argparse_args(parser)
    return parser


def carried_options(names: Iterable[str]) -> type[PipelineOptions]:
    """Names -> a view of pipeline options with these names, which are no flags of a command."""
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
    """Beam's transform for Pub/Sub -> the source in it, which gives serialized messages."""
    return reading._source


def storage_client(path: str) -> Any:
    """The path of an object -> the client of Cloud Storage by which Beam reads it."""
    return FileSystems.get_filesystem(path)._gcsIO().client


def use_no_credentials() -> None:
    """Nothing -> Beam asks Google's services without credentials, as if it had found none."""
    from apache_beam.internal.gcp import auth

    auth._Credentials._credentials_init = True
