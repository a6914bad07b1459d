"""A plan is read from TOML, and an error names its line and its reason."""

import re
from pathlib import Path
from typing import get_args

import pytest
from docs_pages import in_code, marked
from msgspec.structs import FieldInfo, fields

from common.errors import UsageError
from scale_tests.load.plan import (
    Bisection,
    Constant,
    Goal,
    Objective,
    Offline,
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
        ('"topic"', '"topc"', 9, "or report, got 'topc' (did you mean 'topic'"),
        ('"topic"', '"answer"', 9, "target 'stream' needs 'topic' or 'table', got 'answer'"),
        ('name = "out"', "", 8, "result.name is missing: name the topic"),
        ('"topic"', '"table"', 10, "result.name: expected dataset.table or project.dataset.table"),
        ('"stream"', '"batch"', 9, "target 'batch' needs 'report', got 'topic'"),
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


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xe9")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        read_plan(tmp_path / "latin.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "plans").glob("*.toml")), ids=lambda p: p.stem)
def test_the_plans_of_the_project_are_plans(path: Path) -> None:
    assert isinstance(read_plan(path), Plan)


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
    return f"`{field.default}`" if isinstance(field.default, str) else f"{field.default:,g}"


@pytest.mark.parametrize("part", [Plan, Objective, Sender, Rows, Result, Goal])
def test_the_reference_has_every_field_with_its_default(part: type[Values]) -> None:
    expected = {field.name: default(field) for field in fields(part)}
    found = table(part.__name__.lower())
    assert {name: cells[0] for name, cells in found.items()} == expected


def test_the_reference_has_every_phase_with_its_fields() -> None:
    common = {"idle_seconds", "rows"}
    kinds = {kind.__struct_config__.tag: kind for kind in get_args(PhaseKind) if kind != Offline}
    found = table("phases")
    assert found.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert in_code(found[str(name)][0]) == {one.name for one in fields(kind)} - common
    assert re.search(r"`precision` \(0\.05\)", found["bisection"][1])
