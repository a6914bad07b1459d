"""The metadata of the Flex Templates matches the flags."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.cloud.dataflow_v1beta3.types import ParameterType, TemplateMetadata

from pipelines.command import Command
from pipelines.metadata import TEMPLATES, main, pages, template
from pipelines.options.flag import parse_flags

ROOT = Path(__file__).parent.parent
# Values that each pattern must match, and values that it must not match.
VALUES = {
    "model_digest": (["a" * 64, "sha256:" + "0" * 64], ["a" * 63, "md5:" + "a" * 64, "g" * 64]),
    "device": (["auto", "cpu", "cuda", "cuda:1"], ["gpu", "cuda:", "CPU", "cpu "]),
    "endpoint_url": (["http://10.0.0.2", "https://e.p.vertexai.goog/x"], ["10.0.0.2", "ftp://h"]),
    "input_subscription": (["projects/p/subscriptions/s"], ["s", "projects/p/topics/s"]),
    "input_topic": (["projects/p/topics/t"], ["t", "projects/p/subscriptions/t"]),
    "output_topic": (["projects/p/topics/t"], ["t", "projects/p/topics/"]),
    "dead_letter_topic": (["projects/p/topics/t"], ["t"]),
    "max_dead_letter_share": (["0", "0.5", "1"], ["-1", "1.5", "x"]),
    "query_dataset": (["my-p.d", "example.com:my-p.d", "d_1"], ["", "p.d.t", "a-b", "P.d"]),
    "run_id": (["2026-11-20", "scheduled__2026-11-20T00:00:00+00:00"], ["", "a b", "-x"]),
    "report_examples": (["0", "3"], ["-1", "x"]),
    "max_batch_wait_ms": (["1", "50"], ["-1", "x"]),
    "table_version": (["0", "6139212125992157417"], ["-1", "x", "1.5"]),
    "csv_delimiter": ([";", "|", "tab", "space"], ["", ";;", "\t", " ", "é"]),
    "csv_quote": (["'", "none"], ["", "''", " ", "é"]),
    "csv_escape": (["\\", "none"], ["", "\\\\", " ", "é"]),
    "endpoint_cache_rows": (["0", "1000"], ["-1", "x"]),
    "min_rows": (["0", "1000"], ["-1", "x"]),
}
COUNT = (["1", "250"], ["0", "-1", "1.5", "x", ""])


@pytest.fixture(params=TEMPLATES, ids=lambda command: command.name)
def command(request: pytest.FixtureRequest) -> Command:
    return request.param  # type: ignore[no-any-return]


def test_the_committed_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_files_that_are_out_of_date_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.metadata.FOLDER", tmp_path)
    assert main(["--check"]) == 1
    assert "make templates" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert {path.relative_to(tmp_path) for path in pages()} == {
        path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")
    }


def test_dataflow_reads_the_metadata_and_loses_nothing(command: Command) -> None:
    text = (ROOT / "templates" / f"{command.name}.json").read_text()
    written = orjson.loads(text)
    read = TemplateMetadata.from_json(text)
    assert (read.name, read.description) == (command.title, command.about)
    assert [p.name for p in read.parameters] == [p["name"] for p in written["parameters"]]
    again = orjson.loads(TemplateMetadata.to_json(read, including_default_value_fields=False))
    for one, other in zip(written["parameters"], again["parameters"], strict=True):
        assert ParameterType[one["paramType"]] == other["paramType"]
        assert {**one, "paramType": 0} == {"isOptional": False, **other, "paramType": 0}
    assert read.streaming == command.name.startswith("stream")


def parameters(command: Command) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in template(command)["parameters"]}


def test_a_default_is_a_value_that_the_pipeline_accepts(command: Command) -> None:
    given = {n: p["defaultValue"] for n, p in parameters(command).items() if "defaultValue" in p}
    # The launcher passes them on in this form.
    argv = [f"--{name}={value}" for name, value in given.items()]
    explicit = parse_flags(command.name, command.about, command.options, argv)
    assert explicit == parse_flags(command.name, command.about, command.options, [])
    for name, value in given.items():
        choices = [option["value"] for option in parameters(command)[name].get("enumOptions", [])]
        assert not choices or value in choices


def test_patterns_match_good_values_and_no_others(command: Command) -> None:
    patterned = {n: p for n, p in parameters(command).items() if "regexes" in p}
    assert patterned
    for name, parameter in patterned.items():
        (pattern,) = parameter["regexes"]
        good, bad = VALUES.get(name, COUNT)
        for value in good:
            assert re.search(pattern, value), (name, value)
        for value in bad:
            assert not re.search(pattern, value), (name, value)


def test_flags_for_a_terminal_are_not_parameters(command: Command) -> None:
    assert not {"debug", "json_summary", "stop_after_seconds"} & parameters(command).keys()
