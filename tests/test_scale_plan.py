"""A plan is read from TOML, and an error names its line and its reason."""

import re
from pathlib import Path
from typing import get_args

import pytest
from docs_pages import in_code, marked
from msgspec.structs import FieldInfo, fields

from common.errors import UsageError
from scale_tests.load.batch_plan import Batch, BatchGoal, BatchPlan, Offline
from scale_tests.load.plan import (
    Bisection,
    Constant,
    Goal,
    Objective,
    PhaseKind,
    Plan,
    Result,
    Rows,
    Sender,
    Values,
    WarmUp,
)
from scale_tests.load.plan_file import line_of, parse_plan, read_plan

ROOT = Path(__file__).parents[1]
GOOD = """\
target = "stream"
seed = 7
send_to = "in"

[objective]
latency_ms = 500

[result]
source = "topic"
name = "out"
dead_letters = "dead"

# The first phase.
[[phases]]
kind = "warm_up"
rate = 10
seconds = 5

[[phases]]
kind = "bisection"
lowest = 10
highest = 1_000
seconds = 30
"""


def test_a_plan_has_typed_values_and_defaults() -> None:
    plan = parse_plan(GOOD, "plan.toml")
    assert isinstance(plan, Plan)
    assert plan.phases == (
        WarmUp(rate=10, seconds=5),
        Bisection(lowest=10, highest=1000, seconds=30),
    )
    assert (plan.seed, plan.arrivals, plan.objective.percentile) == (7, "poisson", 99)
    assert isinstance(plan.phases[0], WarmUp)
    assert not isinstance(plan.phases[0], Constant)


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ('send_to = "in"', "", 1, "send_to is missing: name the topic"),
        ('dead_letters = "dead"', "", 8, "result.dead_letters is missing"),
        ("seed = 7", "seed = ", 2, "not TOML: Invalid value"),
        ("seed = 7", "seed = 7.5", 2, "seed: expected a whole number, got a number"),
        ("seed = 7", "seed = -1", 2, "seed: expected a whole number of at least 0, got -1"),
        ("seed = 7", "sed = 7", 2, "sed is unknown (did you mean 'seed'"),
        ("latency_ms = 500", "", 5, "objective.latency_ms is missing"),
        ("latency_ms = 500", "latency_ms = 0", 6, "objective.latency_ms: expected a number above"),
        ("latency_ms = 500", "latency_ms = inf", 6, "expected a number of at most 3,600,000"),
        ("latency_ms = 500", "latency_ms = nan", 6, "objective.latency_ms: expected a number"),
        ('"topic"', '"topc"', 9, "or answer, got 'topc' (did you mean 'topic'"),
        ('"topic"', '"answer"', 9, "target 'stream' needs 'topic' or 'table', got 'answer'"),
        ('name = "out"', "", 8, "result.name is missing: name the topic"),
        ('"topic"', '"table"', 10, "result.name: expected dataset.table or project.dataset.table"),
        ('"stream"', '"batch"', 5, "objective: target 'batch' has none: use batch.min_rows_per"),
        ('"stream"', '"streams"', 1, "expected stream or endpoint or batch, got 'streams'"),
        ('"warm_up"', '"offline"', 15, "got 'offline'"),
        ("seed = 7", "batch = 7", 2, "batch: target 'stream' has none"),
        ('"warm_up"', '"warmup"', 15, "got 'warmup' (did you mean 'warm_up'"),
        ("rate = 10", 'rate = "10"', 16, "phases[0].rate: expected a number, got text"),
        ("highest = 1_000", "highest = 5", 19, "phases[1]: expected highest above lowest (10)"),
        ("seconds = 30", "", 19, "phases[1].seconds is missing"),
        ("seconds = 30", "seconds = 30\nrows = 5", 24, "phases[1].rows: a message has one row"),
        ("seconds = 30", "seconds = 30\nspeed = 1", 24, "phases[1].speed is unknown"),
    ],
)
def test_an_error_names_the_line_and_the_reason(old: str, new: str, line: int, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_plan(GOOD.replace(old, new, 1), "plan.toml")
    message = str(caught.value)
    assert message.startswith(f"plan.toml, line {line}: ")
    assert reason in message
    assert "\n" not in message


BATCH = """\
target = "batch"
send_to = "./out"

[batch]
flags = [
    "--model", "package",
    "--batch_rows=100",
]

[[phases]]
kind = "offline"
rows = [1_000, 2_000]
repeat = 3
"""


def test_a_plan_of_a_batch_has_its_command_and_its_sizes() -> None:
    plan = parse_plan(BATCH, "plan.toml")
    assert isinstance(plan, BatchPlan)
    assert plan.phases == (Offline(rows=(1_000, 2_000), repeat=3),)
    assert plan.phases[0].sizes == (1_000, 2_000)
    assert [plan.batch.value_of(name) for name in ("model", "batch_rows", "runner")] == [
        "package",
        "100",
        None,
    ]
    assert (plan.in_tables, plan.batch.on_dataflow) == (False, False)


@pytest.mark.parametrize("runner", ["DataflowRunner", "dataflow", "apache_beam.runners.Dataflow"])
def test_a_runner_of_any_spelling_is_dataflow(runner: str) -> None:
    assert Batch(flags=("--runner", runner)).on_dataflow
    assert Batch(flags=(f"--runner={runner}",)).on_dataflow


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ('send_to = "./out"', "", 1, "send_to is missing: name a folder"),
        ('"./out"', '"s3://bucket/x"', 2, "Storage (gs://BUCKET/FOLDER), got 's3://bucket/x'"),
        ('"./out"', '"gs:/bucket/x"', 2, "Storage (gs://BUCKET/FOLDER), got 'gs:/bucket/x'"),
        ('"./out"', '"gs://"', 2, "Storage (gs://BUCKET/FOLDER), got 'gs://'"),
        ('"./out"', '"./a[1]"', 2, "without wildcards (*, ? and [) and control characters"),
        ('"./out"', r'"./a\u0000"', 2, "without wildcards (*, ? and [) and control characters"),
        ('target = "batch"', "", 1, "target is missing"),
        ('"./out"', '"a.b.c d"', 2, "send_to: expected a folder (with a /), dataset or"),
        ("[batch]", "[objective]\nlatency_ms = 5\n[batch]", 4, "'batch' has none: use batch.min"),
        ("[batch]", '[result]\nsource = "topic"\n[batch]', 4, "results are where send_to says"),
        ("[batch]", '[rows]\ninstance_format = "list"\n[batch]', 5, "a batch sends no requests"),
        ("[batch]", '[rows]\npath = "x"\n[batch]', 5, "rows.path: the example needs none"),
        (
            "[batch]",
            '[rows]\nsource = "file"\n[batch]',
            4,
            "rows.path is missing: name the Parquet",
        ),
        ("[batch]", "[goal]\nrate = 5\n[batch]", 5, "goal.rate is unknown"),
        ("[batch]", "[goal]\n[batch]", 4, "goal.rows is missing"),
        ("[batch]", "goal = 3\n[batch]", 4, "goal: expected a table, got a whole number"),
        ("[batch]", "[batch]\nmax_seconds = true", 5, "expected a number, got true or false"),
        ("2_000]", "20_000_000_000]", 12, "of at most 10,000,000,000, got 20000000000"),
        ("flags = [", 'pipeline = "stream_local"\nflags = [', 5, "got 'stream_local'"),
        ('"--model", "p', '"--input_files", "p', 5, "flags[0]: the test sets --input_files itself"),
        ('"--batch_rows=100"', '"--run_id=x"', 5, "flags[2]: the test sets --run_id itself"),
        (
            '"--model", "p',
            '"model", "p',
            5,
            "flags[0]: expected a flag such as --model, got 'model'",
        ),
        ('"--model", "package"', '"--model p"', 5, 'as two texts, "--model", "p", got'),
        ('"package"', r'"a\u0000"', 5, r"flags[1]: expected text without the character \u0000"),
        ('"package"', "7", 5, "batch.flags[1]: expected text, got a whole number"),
        ("repeat = 3", "repeat = 0", 13, "phases[0].repeat: expected a whole number of at least 1"),
        ("2_000]", "1_000]", 12, "phases[0].rows: expected different numbers; repeat = 3 runs"),
        ("[1_000, 2_000]", "[]", 12, "phases[0].rows: expected at least one"),
        ("[1_000, 2_000]", "-5", 12, "phases[0].rows: expected a whole number of at least 1, got"),
        ('"offline"', '"constant"', 11, "expected offline, got 'constant'"),
        ('kind = "offline"', "", 10, "phases[0].kind is missing"),
        ("repeat = 3", "rate = 3", 13, "phases[0].rate is unknown"),
    ],
)
def test_an_error_in_a_plan_of_a_batch_names_the_line_and_the_reason(
    old: str, new: str, line: int, reason: str
) -> None:
    assert old in BATCH
    with pytest.raises(UsageError) as caught:
        parse_plan(BATCH.replace(old, new, 1), "plan.toml")
    message = str(caught.value)
    assert message.startswith(f"plan.toml, line {line}: "), message
    assert reason in message
    assert "\n" not in message


def test_a_plan_without_phases_or_with_rows_from_nowhere_is_refused() -> None:
    without = GOOD[: GOOD.index("# The first")]
    with pytest.raises(UsageError, match="line 1: phases is missing"):
        parse_plan(without, "plan.toml")
    with pytest.raises(UsageError, match="line 1: phases: expected at least one"):
        parse_plan("phases = []\n" + without, "plan.toml")
    with pytest.raises(UsageError, match=r"line 24: rows\.path is missing: name the Parquet"):
        parse_plan(GOOD + '[rows]\nsource = "file"\n', "plan.toml")


def test_a_value_of_several_lines_has_the_line_on_which_it_starts() -> None:
    text = 'a = """\nb = 1\n"""\n\nc = [\n  {d = 1},\n  {d = 2},\n]\n'
    assert line_of(text, ("a",)) == 1
    assert line_of(text, ("c", 1, "d")) == 5
    assert line_of(text, ("missing",)) == 1


def test_a_plan_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    plan = (ROOT / "plans" / "batch.toml").read_bytes()
    (tmp_path / "plan.toml").write_bytes(b"\xef\xbb\xbf" + plan)
    assert read_plan(tmp_path / "plan.toml") == read_plan(ROOT / "plans" / "batch.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xe9")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        read_plan(tmp_path / "latin.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "plans").glob("*.toml")), ids=lambda p: p.stem)
def test_the_plans_of_the_project_are_plans(path: Path) -> None:
    assert isinstance(read_plan(path), Plan | BatchPlan)


def table(name: str) -> dict[str, list[str]]:
    """Return the rows of a table in the reference of plans, by their first cell."""
    rows = marked("docs/reference/plan.md", name).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {first.strip("`"): rest for first, *rest in cells}


def default(field: FieldInfo) -> str:
    """Return a default as the reference writes it."""
    if field.required:
        return ""
    if isinstance(field.default, Values):
        return "its defaults"
    if field.default is None or field.default == "":
        return "empty" if field.default == "" else "none"
    if field.default == ():
        return "empty"
    return f"`{field.default}`" if isinstance(field.default, str) else f"{field.default:,g}"


PARTS = [Plan, Objective, Sender, Rows, Result, Goal, BatchPlan, Batch, BatchGoal, Offline]


@pytest.mark.parametrize("part", PARTS)
def test_the_reference_has_every_field_with_its_default(part: type[Values]) -> None:
    expected = {field.name: default(field) for field in fields(part)}
    if part is Offline:
        expected["kind"] = ""
    found = table(part.__name__.lower())
    assert {name: cells[0] for name, cells in found.items()} == expected


def test_the_reference_has_every_phase_with_its_fields() -> None:
    common = {"idle_seconds", "rows"}
    kinds = {kind.__struct_config__.tag: kind for kind in get_args(PhaseKind)}
    found = table("phases")
    assert found.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert in_code(found[str(name)][0]) == {one.name for one in fields(kind)} - common
    assert re.search(r"`precision` \(0\.05\)", found["bisection"][1])
