"""The `millrace` command: its help, its dispatch, and the command names in its messages."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from serving_client import running
from source_tree import ROOT

import millrace
from cloud.endpoints import Endpoints
from common.command_names import as_typed, naming
from millrace.command_line import overview, run
from millrace.commands import COMMANDS, NAMES
from millrace.scoring import choose
from pipelines import batch_local, batch_vertex, stream_local, stream_vertex
from pipelines.dataflow.links import attach_command
from resources.kinds.registry import RegistryModels

LISTED = [
    *("score", "stream", "replay", "launch", "package", "inspect", "serve", "deploy"),
    *(
        "deploy status",
        "deploy undeploy",
        "resources",
        "scale-test",
        "template",
        "explain",
        "demo",
        "local-cloud",
    ),
]
# Help needs none of these modules, and importing one takes longer than everything else.
HEAVY = {
    *("torch", "numpy", "pyarrow", "apache_beam", "uvicorn", "requests"),
    *("google.api_core", "google.cloud.bigquery", "google.pubsub_v1"),
}

Done = subprocess.CompletedProcess[str]


def start(*argv: str, cwd: Path = ROOT, path: Path = ROOT) -> Done:
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
    )


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_each_command_is_listed_on_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert out == f"{overview()}\n"
    lines = [line[2:] for line in out.splitlines() if line.startswith("  ")]
    assert [re.split(" {2,}", line)[0] for line in lines] == LISTED == list(COMMANDS)
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"millrace {millrace.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["scor"], "unknown command 'scor' (did you mean 'score'?): see `millrace --help`"),
        (
            ["Stream", "x"],
            "unknown command 'Stream' (did you mean 'stream'?): see `millrace --help`",
        ),
        (["qqq"], "unknown command 'qqq': see `millrace --help`"),
        (["--qqq"], "unknown command '--qqq': see `millrace --help`"),
        (
            ["deploy", "statsu"],
            "unknown command 'deploy statsu' (did you mean 'deploy status' or 'deploy'?)",
        ),
    ],
)
def test_an_unknown_command_is_reported_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("name", [*COMMANDS, "launch batch_local", "resources status"])
def test_help_names_the_typed_command_and_loads_nothing_heavy(name: str) -> None:
    done = start("-X", "importtime", "-m", "millrace", *name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: millrace {name} [-h]")
    assert "python -m" not in done.stdout
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    others = "other commands: millrace deploy, millrace deploy undeploy, millrace deploy status;"
    assert (others in " ".join(done.stdout.split())) == (name == "serve")
    assert "millrace.commands" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "name",
    [name for e in COMMANDS.values() for name in e.same_as if not name.startswith("millrace")],
)
def test_modules_keep_their_own_names(name: str) -> None:
    done = start("-m", *name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {name} [-h]")
    assert not re.search(rf"millrace ({'|'.join(COMMANDS)})", done.stdout)


def test_names_hold_only_in_the_block() -> None:
    link = ("p", "r", "j", Endpoints())
    assert as_typed("serving status") == "python -m serving status"
    with naming(NAMES):
        assert as_typed("pipelines.batch_vertex") == "millrace score"
        assert as_typed("pipelines.launch stream_local") == "millrace launch stream_local"
        assert as_typed("serving status") == "millrace deploy status"
        assert as_typed("serving") == "millrace serve"
        assert as_typed("pipelines.metadata --check") == "python -m pipelines.metadata --check"
        assert attach_command(*link) == "millrace launch --attach j --project p --region r"
        assert RegistryModels.held_by("e") == "e serves it: run `millrace deploy undeploy` first"
    assert attach_command(*link) == "python -m pipelines.launch --attach j --project p --region r"
    assert RegistryModels.held_by("e") == "e serves it: run `python -m serving undeploy` first"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score"], "; for example: millrace score --input_files INPUT_FILES --model MODEL"),
        (["score", "--endpoint_concurrency", "2"], "--endpoint (or --endpoint_url)"),
        (["stream"], "; for example: millrace stream --input_subscription "),
        (["replay"], "; for example: millrace replay --input_files INPUT_FILES --model MODEL"),
        (
            ["launch", "--project", "p"],
            "missing --attach; for example: millrace launch --attach ATTACH",
        ),
        (
            ["launch", "--attach", "a job", "--api_endpoints", "dataflow=http://localhost:1"],
            "missing --project; for example: millrace launch --attach 'a job' --project PROJECT",
        ),
        (["launch", "batch"], "unknown pipeline 'batch'"),
        (["package", "--output", "o"], "missing model"),
        (["deploy", "undeploy"], "--endpoint is missing"),
        (["demo", "--rows", "5"], "unknown arguments --rows 5"),
        (["local-cloud", "--port", "5"], "unknown arguments --port 5"),
        (
            ["resources", "look"],
            "COMMAND must be one of 'plan', 'setup', 'status', 'cleanup', got 'look'",
        ),
        (["template", "batch_local"], "missing --bucket, --image"),
    ],
)
def test_wrong_flags_exit_with_2_and_advice_that_names_the_command(
    argv: list[str], message: str
) -> None:
    done = start("-m", "millrace", *argv)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "python -m" not in line


@pytest.mark.parametrize(
    ("argv", "behind"),
    [
        ([], False),
        (["--model", "m", "--device", "cuda"], False),
        (["--endpoint", "e"], True),
        (["--endpoint=e"], True),
        (["--model", "m", "--endpoint_url", "http://localhost:1"], True),
        (["--skip_endpoint_check"], True),
        (["--run_id", "endpoint"], False),
    ],
)
def test_a_flag_of_endpoints_chooses_the_pipeline(argv: Sequence[str], behind: bool) -> None:
    for local, vertex in ((batch_local, batch_vertex), (stream_local, stream_vertex)):
        wanted = (vertex if behind else local).COMMAND
        assert choose(argv, local.COMMAND, vertex.COMMAND) is wanted


@pytest.mark.parametrize("name", ["score", "stream"])
def test_help_lists_the_flags_of_either_pipeline(name: str) -> None:
    done = start("-m", "millrace", name, "--endpoint", "e", "--help")
    assert {"--device", "--endpoint_url", "--model"} <= set(re.findall(r"--\w+", done.stdout))


def flags(example: Path, out: Path) -> list[str]:
    values = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": out,
        "run_id": "r",
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def test_score_runs_the_model_here_or_behind_an_endpoint(example: Path, tmp_path: Path) -> None:
    with running(example / "model") as server:
        url = f"http://{server.client.address}"
        for pipeline, given in (("batch_local", []), ("batch_vertex", ["--endpoint_url", url])):
            out = tmp_path / pipeline
            done = start("-m", "millrace", "score", *flags(example, out), *given)
            assert done.returncode == 0, done.stderr
            report = json.loads((out / "r" / "report.json").read_text())
            assert (report["pipeline"], report["rows_scored"]) == (pipeline, 1_980)


def test_without_a_checkout_the_demo_works_and_missing_emulators_are_reported_in_one_line(
    distribution: Path, tmp_path: Path
) -> None:
    (wheel,) = distribution.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = start("-m", "millrace", "demo", "--help", cwd=tmp_path, path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: millrace demo")
    done = start("-m", "millrace", "local-cloud", cwd=tmp_path, path=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the emulators are missing; run in a checkout")


def test_a_script_finds_modules_of_the_working_directory_after_all_others(tmp_path: Path) -> None:
    script, here = tmp_path / "bin" / "millrace", tmp_path / "here"
    script.parent.mkdir()
    here.mkdir()
    script.write_text(
        "import sys\n"
        "from millrace import __main__\n"
        "__main__.run = lambda argv: print(sys.path[-1] == '', *argv)\n"
        "sys.exit(__main__.main())\n"
    )
    assert start(str(script), "package", "x", cwd=here).stdout == "True package x\n"
    assert start("-P", str(script), cwd=here).stdout == "False\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain"],
        ["inspect", "{package}"],
        ["score", "--input_files", "{rows}", "--model", "{package}", "--output_files", "{out}"],
        [
            *("score", "--input_files", "{rows}", "--model", "{package}"),
            *("--output_files", "{out}", "--json_summary"),
        ],
    ],
    ids=["explain", "inspect", "summary", "json"],
)
def test_a_command_succeeds_if_nobody_reads_its_output(
    arguments: list[str], example: Path, tmp_path: Path
) -> None:
    places = {
        "package": example / "model",
        "rows": example / "transactions.parquet",
        "out": tmp_path / "out",
    }
    words = [word.format(**places) for word in arguments]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "millrace", *words],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
