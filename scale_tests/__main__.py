"""The commands `python -m scale_tests stream`, `endpoint`, `batch`, `report` and `compare`.

Exit codes: 0 success, whatever the verdicts; 1 failure, or a comparison found worse figures; 2 an
error in the command line or in the plan; 130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from common.addresses import guard_output
from common.command_line import CommandParser
from common.errors import MillraceError, UsageError, one_line
from common.interrupts import ended_by_signals
from common.terminal import print_error
from scale_tests.load.batch_plan import BatchPlan
from scale_tests.load.plan import Plan
from scale_tests.load.plan_file import read_plan

if TYPE_CHECKING:
    from cloud.vertex import EndpointAddress
    from scale_tests.measures.batch_runs import BatchOutcome
    from scale_tests.measures.outcome import Outcome

P = TypeVar("P", Plan, BatchPlan)


def main(argv: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    try:
        args = make_parser().parse_args(argv)
        guard_output()
        return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except MillraceError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        print_error(MillraceError(f"unexpected {type(error).__name__}: {one_line(error)}"))
        return 1


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser("scale_tests", "Measure a stream, an endpoint or a batch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    stream = commands.add_parser("stream", help="publish messages to a running stream")
    stream.add_argument("--project", required=True, help="the project of the topics")
    endpoint = commands.add_parser("endpoint", help="send requests to an endpoint")
    for name, metavar, text in (
        ("--endpoint", "NAME", "a Vertex AI endpoint: its full name, its id or its display name"),
        ("--endpoint_url", "URL", "any server that answers like Vertex AI"),
        ("--endpoint_project", "PROJECT", "the project of an id or a display name"),
        ("--endpoint_location", "LOCATION", "the location of an id or a display name"),
    ):
        endpoint.add_argument(name, metavar=metavar, help=f"{text} (default: send_to of the plan)")
    batch = commands.add_parser("batch", help="score rows of several sizes with a batch")
    batch.add_argument("--project", help="the project of a dataset that the plan names without one")
    for one in (stream, endpoint, batch):
        one.add_argument("--plan", type=Path, required=True, help="the plan, a TOML file")
        one.add_argument(
            "--output", type=Path, help="the folder of the result (default: scale-test-TIME)"
        )
    _add_report(commands)
    _add_compare(commands)
    return parser


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write the page of a result again")
    report.add_argument("folder", type=Path, help="the folder that a test wrote")
    for name, text in (
        ("--project", "the project to read Cloud Monitoring of, some minutes after the test"),
        ("--job_id", "the Dataflow job that was tested, for its workers"),
        ("--subscription", "the id of the subscription that the job reads, for the backlog"),
        ("--endpoint_id", "the endpoint that was tested, for its replicas and their CPU"),
    ):
        report.add_argument(name, help=text)


def _add_compare(commands: Any) -> None:
    both = commands.add_parser("compare", help="compare two results of one plan")
    both.add_argument("before", type=Path, help="the folder of the first result")
    both.add_argument("after", type=Path, help="the folder of the second result")
    both.add_argument(
        "--fail_if_slower",
        metavar="SHARE",
        default="10%",
        help="exit with 1 if a figure is worse by more than this share (default: 10%%)",
    )
    both.add_argument(
        "--moved",
        metavar="RESOURCE",
        choices=("source", "pipeline", "endpoint", "sink"),
        help="what the second system has more of: source, pipeline, endpoint or sink; confirms "
        "the bottleneck that the first result names",
    )
    both.add_argument(
        "--output", type=Path, help="the page to write (default: comparison.html in AFTER)"
    )


def show(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def full_names(plan: Plan, project: str) -> Plan:
    """Return a plan in which topics and a table without a project belong to this one."""

    def full(topic: str) -> str:
        return topic if "/" in topic else f"projects/{project}/topics/{topic}"

    name = plan.result.name.replace(":", ".")
    table = name if name.count(".") == 2 else f"{project}.{name}"
    names = {
        "name": table if plan.result.source == "table" else full(name),
        "dead_letters": full(plan.result.dead_letters),
    }
    return replace(plan, send_to=full(plan.send_to), result=replace(plan.result, **names))


def address_of(plan: Plan, args: argparse.Namespace) -> EndpointAddress:
    """Return the endpoint that the flags name, or else the plan.

    Raises:
        UsageError: Neither names one, or the names are invalid or incomplete.
    """
    from cloud.endpoints import Endpoints
    from cloud.vertex import EndpointAddress

    name, url = args.endpoint, args.endpoint_url
    if name is None and url is None:
        if not plan.send_to:
            raise UsageError(
                f"{args.plan}: send_to is missing: name the URL or the full name of the endpoint "
                "there, or use --endpoint or --endpoint_url"
            )
        is_url = plan.send_to.startswith(("http://", "https://"))
        name, url = (None, plan.send_to) if is_url else (plan.send_to, None)
    return EndpointAddress(
        endpoint=name,
        url=url,
        project=args.endpoint_project,
        location=args.endpoint_location,
        service=Endpoints.resolve().aiplatform,
    )


def _stream(args: argparse.Namespace) -> int:
    from cloud.clients import Cloud
    from scale_tests.streams.stream import run_stream

    plan = full_names(_read(args, Plan), args.project)
    return _run_load(args, plan, lambda: run_stream(plan, Cloud(args.project), show))


def _endpoint(args: argparse.Namespace) -> int:
    from scale_tests.endpoints.endpoint import run_endpoint

    plan = _read(args, Plan)
    address = address_of(plan, args)
    plan = replace(plan, send_to=address.label)
    return _run_load(args, plan, lambda: run_endpoint(plan, address, show))


def _batch(args: argparse.Namespace) -> int:
    plan = _read(args, BatchPlan)
    if plan.in_tables:
        plan = replace(plan, send_to=_dataset(args, plan.send_to))
    with _prepared(args) as folder:
        from scale_tests.batches.batch import run_batch
        from scale_tests.pages.batch_record import write_batch

        # The command has a process group of its own, which a closed terminal does not end.
        with ended_by_signals():
            outcome = run_batch(plan, folder, show)
        write_batch(outcome, folder)
    return _end(outcome, folder)


def _dataset(args: argparse.Namespace, name: str) -> str:
    """Return the full name of a dataset."""
    name = name.replace(":", ".")
    if "." in name:
        return name
    if args.project is None:
        raise UsageError(
            f"{args.plan}: send_to {name!r} is a dataset without its project: pass --project, or "
            f"write ./{name} for a folder"
        )
    return f"{args.project}.{name}"


def _read(args: argparse.Namespace, kind: type[P]) -> P:
    plan = read_plan(args.plan)
    if plan.target != args.command or not isinstance(plan, kind):
        raise UsageError(f"{args.plan}: expected target {args.command!r}, got {plan.target!r}")
    return plan


@contextmanager
def _prepared(args: argparse.Namespace) -> Iterator[Path]:
    """Yield the folder for a result, after checking that a test can end with one."""
    from scale_tests.pages.record import prepared

    for library in ("hdrh", "psutil", "scipy", "vl_convert"):
        if importlib.util.find_spec(library) is None:
            raise UsageError("scale tests need more packages: run pip install 'millrace[scale]'")
    now = datetime.datetime.now()
    folder: Path = args.output or Path(f"scale-test-{now:%Y%m%d-%H%M%S}")
    with prepared(folder):
        yield folder


def _run_load(args: argparse.Namespace, plan: Plan, run: Callable[[], Outcome]) -> int:
    """Run a test of a stream or an endpoint, and write its result and its page."""
    from scale_tests.pages.record import write

    with _prepared(args) as folder:
        outcome = run()
        write(outcome, plan, folder)
    return _end(outcome, folder)


def _end(outcome: Outcome | BatchOutcome, folder: Path) -> int:
    """Write the page of a result, print how the test ended, and return the exit code."""
    from scale_tests.pages.page import write_report

    said = f"{outcome.ended}: the result is partial" if outcome.ended else "done"
    print(f"{said}; see {write_report(folder)}")
    if outcome.interrupted:
        return 130
    return 1 if outcome.ended else 0


def _report(args: argparse.Namespace) -> int:
    from cloud.clients import Cloud
    from cloud.endpoints import Endpoints
    from scale_tests.measures.watched import RESOURCES
    from scale_tests.pages.page import understood, write_report
    from scale_tests.pages.watched import watched_section, write_watched

    ids = {name: getattr(args, name) for name in RESOURCES if getattr(args, name)}
    if bool(ids) is not bool(args.project):
        raise UsageError(
            "--project belongs to --job_id, --subscription or --endpoint_id: pass both, or neither"
        )
    if ids:
        write_watched(args.folder, Cloud(args.project, Endpoints.resolve()), ids)
    with understood(args.folder):
        path = write_report(args.folder, watched_section(args.folder))
    print(f"wrote {path}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from common.html_pages.page import number
    from scale_tests.pages.compare import PAGE, read_share, write_comparison

    path = args.output or args.after / PAGE
    limit = read_share(args.fail_if_slower)
    found = write_comparison(args.before, args.after, limit, path, args.moved)
    worse = found.worse
    for one in worse:
        before, after = ("-" if x is None else number(x) for x in (one.before, one.after))
        show(f"{one.name}: {before} {one.unit} before, {after} after")
    if (bottleneck := found.bottleneck) is not None:
        value = bottleneck.value or bottleneck.confidence
        show(f"bottleneck: {value} ({bottleneck.confidence}): {bottleneck.evidence[0]}")
    print(f"{found.said}; see {path}")
    return 1 if worse else 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "stream": _stream,
    "endpoint": _endpoint,
    "batch": _batch,
    "report": _report,
    "compare": _compare,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
