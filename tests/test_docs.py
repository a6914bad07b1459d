"""What docs/ say is so: commands parse, settings are accepted, tables are what programs print."""

import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import cost
from dags.millrace_dags.health import read_settings
from dags.millrace_dags.runs import plan_run
from model_handlers import package
from pipelines import batch_local
from pipelines.beam_args import beam_flags
from pipelines.launch import command as launch
from pipelines.options.flag import parse_flags
from pipelines.replay import command as replay
from resources import flags as resources
from resources.config import PIPELINES
from resources.declaration import ROLES
from serving.deploy import flags as deploy_flags

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
VALUES = {
    "PROJECT": "my-project",
    "REGION": "us-central1",
    "BUCKET": "my-bucket",
    "MODEL": "gs://my-bucket/model/",
    "WORKER": "millrace-worker@my-project.iam.gserviceaccount.com",
    "REPOSITORY": "us-central1-docker.pkg.dev/my-project/millrace",
}
TEMPLATE = json.loads((ROOT / "templates/batch_local.json").read_text())
PARAMETERS = {parameter["name"] for parameter in TEMPLATE["parameters"]}
SERVING = {
    "deploy": deploy_flags.deploy_parser,
    "undeploy": deploy_flags.undeploy_parser,
    "status": deploy_flags.status_parser,
}
COMMANDS = {module.COMMAND.name: module.COMMAND for module in (batch_local, replay)}


def filled(text: str) -> str:
    return re.sub(r"\$(\w+)", lambda m: VALUES.get(m[1], m[0]), text)


def commands(program: str) -> Iterator[list[str]]:
    """A program -> the arguments of each of its commands in blocks of the docs."""
    for text in PAGES.values():
        for block in re.findall(r"^```(?:ba)?sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in filled(block.replace("\\\n", " ")).splitlines():
                if line.startswith(f"{program} "):
                    yield shlex.split(line.removeprefix(program), comments=True)


def our_commands() -> list[list[str]]:
    return [args for args in commands("python") if args[0] == "-m"]


def test_there_are_commands_to_check() -> None:
    assert len(our_commands()) > 10


@pytest.mark.parametrize("args", our_commands(), ids=lambda args: " ".join(args[1:4]))
def test_commands_of_the_docs_have_the_flags_that_they_name(args: list[str]) -> None:
    name, rest = args[1], args[2:]
    if name == "resources":
        resources.parse_arguments(rest)
    elif name == "serving":
        SERVING[rest[0]]().parse_args(rest[1:])
    elif name == "model_handlers.package":
        package._parser().parse_args(rest)
    else:
        if name == "pipelines.launch":
            command, given = launch.choose_command(rest)
            assert command is not None
        else:
            command, given = COMMANDS[name.removeprefix("pipelines.")], rest
        parsed = parse_flags(command.name, command.about, command.options, given)
        passed_on = {arg for arg in parsed.beam_args if arg.startswith("--")}
        assert passed_on <= beam_flags().keys()


def test_make_is_asked_for_what_it_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [args[0] for args in commands("make")]
    assert asked
    assert set(asked) <= targets


def test_parameters_given_to_gcloud_are_the_templates() -> None:
    start = ["dataflow", "flex-template", "run"]
    (run,) = (args for args in commands("gcloud") if args[:3] == start)
    lists = [value for flag, value in pairwise(run) if flag == "--parameters"]
    given = ",".join(lists).split(",")
    assert lists
    assert {pair.partition("=")[0] for pair in given} <= PARAMETERS


def variable(name: str) -> dict[str, object]:
    found = re.search(
        rf"<!-- variable: {name} -->.*?<<END\n(.*?)\nEND\n", PAGES["runbook.md"], re.DOTALL
    )
    assert found is not None
    return json.loads(filled(found[1]))  # type: ignore[no-any-return]


def test_variables_of_the_dags_are_accepted() -> None:
    moment = datetime(2026, 11, 20, 5, tzinfo=UTC)
    plan = plan_run(variable("millrace_scoring"), {}, moment, moment)
    launch_parameters = plan["request"]["launchParameter"]
    assert launch_parameters["parameters"]["row_restriction"] == "day = '2026-11-20'"
    assert set(launch_parameters["parameters"]) <= PARAMETERS
    (job,) = read_settings(variable("millrace_streams"))["jobs"]
    assert job["name"].startswith("pytorch-streaming-")


def under(page: str, name: str) -> str:
    """The table that follows a mark."""
    found = re.search(rf"<!-- table: {name} -->\n+((?:\|.*\n)+)", PAGES[page])
    assert found is not None, f"no table follows {name} in docs/{page}"
    return found[1].strip()


@pytest.mark.parametrize("name", ["batch", "stream"])
def test_costs_are_those_that_the_benchmark_computes(name: str) -> None:
    assert under("cost.md", name) == cost.tables()[name]


def test_a_million_rows_cost_less_than_the_references() -> None:
    parts = cost.batch_dollars(1e6, cost.read_measured())
    assert sum(parts.values()) < 1.0
    # What the page says dominates.
    assert parts["start"] > parts["rows"] + parts["read"]


def test_roles_are_those_that_setup_gives() -> None:
    lines = [f"| role | {' | '.join(PIPELINES)} |", f"|---|{'---|' * len(PIPELINES)}"]
    for role, pipelines in ROLES.items():
        cells = ("yes" if name in pipelines else "" for name in PIPELINES)
        lines.append(f"| `{role}` | {' | '.join(cells)} |")
    assert under("access.md", "roles") == "\n".join(lines)


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (ROOT / "docs" / target).exists(), f"{name}: {target}"
    readme = (ROOT / "README.md").read_text()
    for name in PAGES:
        assert f"docs/{name}" in readme, f"the README does not link to docs/{name}"
