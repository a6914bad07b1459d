"""The flags of the command that creates a model package."""

from __future__ import annotations

import argparse

from common.command_line import CommandParser, json_object, names, pair, positive


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = CommandParser(
        "model_handlers.package",
        "Create a model package: a folder with a model file and model.json.",
    )
    files = ".pt2, TorchScript .pt, .safetensors or state dict"
    parser.add_argument("model", nargs="?", help=f"model file: {files}")
    parser.add_argument(
        "--feature_columns",
        type=names,
        metavar="A,B,C",
        help="columns of the only input of a model, in order",
    )
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        help="TOML file that describes the columns of each input, their steps, and fields "
        "(default: the columns of the sample that have the names of the inputs)",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder to write the package to"
    )
    _add_name_flags(parser)
    _add_sample_flags(parser)
    _add_special_flags(parser)
    _add_change_flags(parser)
    return parser


def _add_name_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the name, the version and the score of the model."""
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="name of the model (default: the file name, without suffix, or that of the package of "
        "--from)",
    )
    parser.add_argument(
        "--version",
        metavar="TEXT",
        help="version of the model (default: 1, or that of the package of --from)",
    )
    parser.add_argument(
        "--score_output",
        metavar="NAME",
        help="output to use as the score (default: the output with one float per row, if there is "
        "only one)",
    )


def _add_sample_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a sample."""
    parser.add_argument(
        "--sample",
        metavar="A,B,C",
        type=names,
        help="paths of training rows, to take known-good rows and statistics from and to fit steps "
        "on; `millrace package` reads Parquet, CSV and JSON files, globs and folders, the module "
        "alone one Parquet file (default: none; workers then cannot check the model)",
    )
    parser.add_argument(
        "--sample_query",
        metavar="SQL",
        help="BigQuery query whose rows are the sample (`millrace package` only)",
    )
    parser.add_argument(
        "--project",
        metavar="NAME",
        help="project that pays for --sample_query (default: that of the credentials)",
    )


def _add_change_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change a package."""
    parser.add_argument(
        "--from",
        dest="package",
        metavar="PACKAGE",
        help="package to change, in place of a model file; its model stays the same",
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=pair,
        action="append",
        default=[],
        help="column of the package of --from that has another name in the source; repeat it for "
        "more columns",
    )
    parser.add_argument(
        "--fill",
        metavar="COLUMN=VALUE",
        type=pair,
        action="append",
        default=[],
        help="value that replaces null in a column of the package of --from; `mean` is the mean of "
        "its statistics, for columns without steps; repeat it for more columns",
    )


def _add_special_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for state dicts, and for models whose answers depend on the batch."""
    parser.add_argument(
        "--architecture",
        metavar="MODULE:CLASS",
        help="class to load weights into, for a state dict or .safetensors file",
    )
    parser.add_argument(
        "--architecture_args",
        metavar="JSON",
        type=json_object,
        default={},
        help="keyword arguments of that class, for example '{\"hidden\": 64}' (default: none)",
    )
    parser.add_argument(
        "--trusted_modules",
        metavar="A,B",
        type=names,
        default=(),
        help="top-level modules that may be imported for --architecture, and for functions that "
        "steps call (default: none)",
    )
    parser.add_argument(
        "--allow_batch_dependence",
        metavar="TOLERANCE",
        type=positive,
        help="accept a model whose outputs for a row depend on the other rows in the batch, if the "
        "difference is at most this (absolute and relative); recorded in the manifest and in every "
        "report",
    )
