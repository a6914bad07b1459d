"""Commands and code in the documentation work: flags exist, files parse, programs run."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT, blocks, commands, filled

import millrace
from dags.millrace_dags.health import read_settings
from dags.millrace_dags.runs import plan_run
from model_handlers import package_flags
from model_handlers.packaging.spec_file import parse_spec
from pipelines import batch_local, batch_vertex, stream_local, stream_vertex, template_spec
from pipelines.beam_args import beam_flags
from pipelines.launch import command as launch
from pipelines.options import all_flags
from pipelines.options.flag import build_parser, parse_flags
from pipelines.replay import command as replay
from resources import flags as resources
from resources.config import read_config
from scale_tests import __main__ as scale_tests
from scale_tests.load.plan_file import parse_plan
from serving import settings
from serving.deploy import flags as deploy_flags

TEMPLATE = json.loads((ROOT / "templates/batch_local.json").read_text())
PARAMETERS = {parameter["name"] for parameter in TEMPLATE["parameters"]}
SERVING = {
    "deploy": deploy_flags.deploy_parser,
    "undeploy": deploy_flags.undeploy_parser,
    "status": deploy_flags.status_parser,
}
PIPELINES = (batch_local, batch_vertex, stream_local, stream_vertex, replay)
COMMANDS = {module.COMMAND.name: module.COMMAND for module in PIPELINES}
POOL = "apache_beam.runners.worker.worker_pool_main"
OTHER_PROGRAMS = {"pytest", "benchmarks.cost", "build", "examples.churn.build", POOL}


def our_commands() -> list[tuple[str, list[str]]]:
    return [(page, args) for page, args in commands("python") if args[0] == "-m"]


def test_there_are_commands_to_check() -> None:
    assert len(our_commands()) > 30


@pytest.mark.parametrize(
    ("page", "args"),
    our_commands(),
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_commands_have_the_flags_that_they_name(page: str, args: list[str]) -> None:
    name, rest = args[1], args[2:]
    if name in OTHER_PROGRAMS:
        return
    if name == "resources":
        resources.parse_arguments(rest)
    elif name == "serving" and rest[0] in SERVING:
        SERVING[rest[0]]().parse_args(rest[1:])
    elif name == "serving":
        settings.parse_settings(rest, {})
    elif name == "model_handlers.package":
        package_flags.make_parser().parse_args(rest)
    else:
        if name == "pipelines.launch":
            command, given = launch.choose_command(rest)
            assert command is not None
        else:
            command, given = COMMANDS[name.removeprefix("pipelines.")], rest
        parsed = parse_flags(command.name, command.about, command.options, given)
        passed_on = {arg for arg in parsed.beam_args if arg.startswith("--")}
        assert passed_on <= beam_flags().keys(), page


SCALE_TESTS = [(page, args) for page, args in commands("millrace") if args[0] == "scale-test"]


@pytest.mark.parametrize(("page", "args"), SCALE_TESTS)
def test_commands_of_scale_tests_are_complete(page: str, args: list[str]) -> None:
    scale_tests.make_parser().parse_args(args[1:])
    plans = [Path(value) for flag, value in pairwise(args) if flag == "--plan"]
    assert all((ROOT / plan).exists() for plan in plans if plan.parent.name == "plans"), page


def every_flag() -> set[str]:
    """The flags of all programs, and of Beam."""
    flags = set(beam_flags()) | all_flags()
    parsers = [settings.make_parser({}), *(make() for make in SERVING.values())]
    parsers += [build_parser("launch", "", launch.ATTACH.options), package_flags.make_parser()]
    parsers.append(template_spec.make_parser())
    for several in (resources.make_parser(), scale_tests.make_parser()):
        (subcommands,) = several._subparsers._group_actions  # type: ignore[union-attr]
        parsers += subcommands.choices.values()  # type: ignore[attr-defined, arg-type, union-attr]
    for parser in parsers:
        flags |= set(parser._option_string_actions)
    return flags


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_a_text_exists(page: str) -> None:
    # Shell blocks have the flags of other programs too.
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`(?:gcloud|bq|gsutil) [^`]*`", "", prose)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_]+(?![\w-])", prose))
    others = {"--help", "--kms", "--runner", "--labels"}
    assert named - others <= every_flag()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {arg for _, args in commands("make") for arg in args if re.fullmatch(r"[a-z-]+", arg)}
    for text in PAGES.values():
        named |= set(re.findall(r"`make ([a-z-]+)", text))
    assert len(named) > 10
    assert named <= targets


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_code_parses_and_imports_names_that_exist(page: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module == "millrace":
            assert {alias.name for alias in node.names} <= set(millrace.__all__), page


@pytest.mark.parametrize(("page", "block"), blocks("json"))
def test_json_parses(page: str, block: str) -> None:
    assert json.loads(block), page


@pytest.mark.parametrize(("page", "block"), blocks("toml"))
def test_toml_files_are_accepted(tmp_path: Path, page: str, block: str) -> None:
    value = tomllib.loads(block)
    if "phases" in value:
        assert parse_plan(block, page).phases
        return
    if "inputs" in value:
        assert parse_spec(value).inputs, page
        return
    path = tmp_path / "millrace.toml"
    path.write_text(block.replace('name = "..."', "").replace('"..."', '"my-project"'))
    config = read_config(path, {"project": "my-project"})
    assert config.project == "my-project", page


def test_parameters_given_to_gcloud_are_the_templates() -> None:
    start = ["dataflow", "flex-template", "run"]
    (run,) = (args for _, args in commands("gcloud") if args[:3] == start)
    lists = [value for flag, value in pairwise(run) if flag == "--parameters"]
    given = ",".join(lists).split(",")
    assert lists
    assert {pair.partition("=")[0] for pair in given} <= PARAMETERS


def variable(name: str) -> dict[str, object]:
    page = PAGES["docs/how-to/schedule-with-composer.md"]
    found = re.search(rf"<!-- variable: {name} -->.*?<<END\n(.*?)\nEND\n", page, re.DOTALL)
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


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/use-the-transforms.md"])
def test_the_pipeline_of_a_page_scores_one_row_and_rejects_the_other(
    page: str, example: Path
) -> None:
    (code,) = (block for place, block in blocks("python") if place == page)
    code = code.replace("build/example", str(example))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "'row_id': 't1'" in done.stdout
    assert "'normalized_MAE'" in done.stdout
    assert "'message': 'column Amount: null'" in done.stdout


def test_the_tutorial_on_your_own_model_works_as_written(tmp_path: Path) -> None:
    page = "docs/tutorials/your-own-model.md"
    (make,) = (block for place, block in blocks("python") if place == page)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-c", make)
    for _, block in ((p, b) for p, b in blocks("sh") if p == page):
        words = shlex.split(block.replace("\\\n", " "))
        if words[0] == "cat":
            (path,) = tmp_path.glob(words[1])
            header, *rows = path.read_text().splitlines()
            assert header.startswith('"row_id","score","height"')
            assert len(rows) == 2
            continue
        assert words[0] == ".venv/bin/python"
        out = run(*words[1:])
    assert re.search(r"^scored +2$", out, re.MULTILINE)
    assert re.search(r"null at validate +\(width 1\)$", out, re.MULTILINE)
