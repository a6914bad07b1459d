"""The command `millrace package`. Its help must not wait for Arrow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import UsageError
from model_handlers import package

if TYPE_CHECKING:
    import pyarrow as pa


def main(argv: Sequence[str] | None = None) -> int:
    """Run `millrace package`, which reads samples in all formats; return its exit code."""
    return package.main(argv, open_sample)


def open_sample(args: argparse.Namespace) -> pa.Table | None:
    """Return the sample that the flags of the command name, or None."""
    from cloud.clients import Cloud, default_project
    from transforms.samples import read_query, read_sample

    if args.sample_query is None:
        return None if args.sample is None else read_sample(args.sample)
    project = args.project or default_project()
    if project is None:
        raise UsageError("--sample_query needs --project, the project that pays for the query")
    return read_query(Cloud(project), args.sample_query)
