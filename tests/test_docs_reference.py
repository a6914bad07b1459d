"""The reference lists what the code has: reasons, roles, metrics, columns, fields, costs."""

import dataclasses
import importlib
import re
import sys
from collections import Counter

import pytest
from docs_pages import PAGES, ROOT, in_code, marked, section, tables

import millrace
from benchmarks import cost
from cloud.endpoint_stats import Stats
from common import errors
from common.measures import EVERY
from millrace.commands import COMMANDS
from model_handlers.endpoints.handler import counters
from model_handlers.manifests.manifest import Manifest
from model_handlers.steps.catalog import STEPS
from pipelines.stream.progress import LATENCIES
from resources.config import PIPELINES, Config
from resources.declaration import ROLES
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import REASONS

sys.path.insert(0, str(ROOT / "tools"))

import flag_pages
import step_page


def test_the_pages_of_flags_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert flag_pages.main(["--check"]) == 0, capsys.readouterr().err


def test_the_page_of_steps_is_up_to_date_and_has_all_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert step_page.main(["--check"]) == 0, capsys.readouterr().err
    titles = re.findall(r"^### (\w+)$", PAGES["docs/reference/steps.md"], re.MULTILINE)
    assert sorted(titles) == sorted(STEPS)


def test_every_reason_is_described_and_used() -> None:
    (table,) = tables(PAGES["docs/reference/dead-letter-reasons.md"])
    named = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([a-z_]+)`", row.split("|")[2])
    }
    source = "".join(path.read_text() for path in (ROOT / "transforms").rglob("*.py"))
    source += "".join(path.read_text() for path in (ROOT / "model_handlers").rglob("*.py"))
    used = set(re.findall(r'Fault\(\s*"([a-z_]+)"', source))
    used |= set(re.findall(r'faults\.add\([^"]*"([a-z_]+)"', source))
    used |= set(re.findall(r'"((?:model|endpoint)_(?:error|refused|failed))"', source))
    used |= {reason for step in STEPS.values() for reason in step.REASONS}
    assert used == named == set(REASONS)


@pytest.mark.parametrize("name", ["batch", "stream"])
def test_costs_are_those_that_the_benchmark_computes(name: str) -> None:
    assert marked("docs/explanation/cost.md", name) == cost.tables()[name]


def test_a_million_rows_cost_less_than_the_references() -> None:
    parts = cost.batch_dollars(1e6, cost.read_measured())
    assert sum(parts.values()) < 1.0
    # The page says that the start dominates.
    assert parts["start"] > parts["rows"] + parts["read"]


def test_roles_are_those_that_setup_grants() -> None:
    page = "docs/reference/roles.md"
    lines = [f"| role | {' | '.join(PIPELINES)} |", f"|---|{'---|' * len(PIPELINES)}"]
    for role, pipelines in ROLES.items():
        cells = ("yes" if name in pipelines else "" for name in PIPELINES)
        lines.append(f"| `{role}` | {' | '.join(cells)} |")
    assert marked(page, "roles") == "\n".join(lines)
    reasons = tables(PAGES[page])[1]
    assert {name for name in in_code(reasons) if name.startswith("roles/")} == ROLES.keys()


def test_the_api_page_has_every_public_name() -> None:
    page = PAGES["docs/reference/api.md"]
    (table,) = tables(page)
    named = [re.findall(r"`(\w+)`", row)[0] for row in table.splitlines()[2:]]
    assert sorted(named) == sorted(millrace.__all__)
    entries = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    assert [entry.rsplit(".", 1)[1] for entry in entries] == named[:-1]
    for entry in entries:
        module, _, name = entry.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(millrace, name)


def test_commands_are_those_of_millrace() -> None:
    lines = ["| command | what it does | the same as |", "|---|---|---|"]
    for name, entry in COMMANDS.items():
        same = ", ".join(f"`python -m {other}`" for other in entry.same_as)
        lines.append(f"| `millrace {name}` | {entry.about} | {same} |")
    assert tables(PAGES["docs/reference/commands.md"]) == ["\n".join(lines)]


def test_every_metric_of_the_pipelines_has_a_line() -> None:
    source = "".join(
        path.read_text()
        for package in ("transforms", "model_handlers", "pipelines", "cloud")
        for path in (ROOT / package).rglob("*.py")
    )
    used = set(re.findall(r'Metrics\.\w+\(\s*(?:NAMESPACE|"millrace"), "(\w+)"', source))
    assert {"rows_inferred", "rows_dead_lettered", "endpoint_request_ms"} <= used
    # The page names the classes of answers after the first one in short.
    used |= {*counters(Stats(answers=Counter({"2xx": 1, "timeout": 1})), 1)}
    used |= {*LATENCIES, *(measure.name for measure in EVERY)}
    assert used <= in_code(section("docs/reference/metrics.md", "Pipelines"))


def test_every_metric_of_the_server_has_a_line() -> None:
    used = set(re.findall(r'"(millrace_\w+)"', (ROOT / "serving/metrics.py").read_text()))
    assert len(used) > 5
    assert in_code(section("docs/reference/metrics.md", "The server")) >= used


def test_every_error_has_a_section() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MillraceError)
    }
    named = set(re.findall(r"^## (\w+)$", PAGES["docs/reference/errors.md"], re.MULTILINE))
    assert named == classes - {"MillraceError"}


def test_every_field_of_the_manifest_has_a_line() -> None:
    fields = {field.name for field in dataclasses.fields(Manifest)} - {"schema_version"}
    assert fields <= in_code(section("docs/reference/model-package.md", "Fields"))


def test_every_key_of_the_config_is_in_the_file() -> None:
    page = PAGES["docs/reference/millrace-toml.md"]
    named = set(re.findall(r"^(?:# )?(\w+) = ", page, re.MULTILINE))
    assert named == {field.name for field in dataclasses.fields(Config)}


def test_every_column_of_a_dead_letter_has_a_line() -> None:
    named = in_code(section("docs/reference/row-columns.md", "A dead letter"))
    assert set(FAILURE_SCHEMA.names) <= named
