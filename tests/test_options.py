"""Flags: how they are parsed, their errors, and their help."""

import copy
import dataclasses
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from hypothesis import given as examples
from hypothesis import strategies as st

from cloud.endpoints import Endpoints
from common.errors import UsageError
from common.record_batch import BATCH_BYTES
from pipelines.batch_local import COMMAND
from pipelines.beam_args import beam_flags, beam_options, runs_in_process
from pipelines.command import Command
from pipelines.dataflow.job_name import JOB_NAMES
from pipelines.handlers import make_handler
from pipelines.metadata import TEMPLATES
from pipelines.options import (
    CloudOptions,
    DeviceOptions,
    FailureOptions,
    ModelOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
    all_flags,
)
from pipelines.options.flag import Parsed, build_parser, parse_flags
from pipelines.options.lists import join_list, split_list
from pipelines.options.model import BATCH_ROWS, STREAM_BATCH_ROWS, EndpointOptions
from pipelines.replay.command import COMMAND as REPLAY
from pipelines.stream.config import stream_config
from pipelines.stream.messages import row_timings, stream_fields
from pipelines.stream_local import COMMAND as STREAM
from pipelines.stream_vertex import COMMAND as STREAM_VERTEX

SUBSCRIPTION = "projects/p/subscriptions/s"


def parsed(*argv: str) -> Parsed:
    return parse_flags(COMMAND.name, COMMAND.about, COMMAND.options, argv)


def test_lists_are_split_at_commas_and_spaces() -> None:
    source = parsed("--input_files", "/a.parquet,gs://b/b.parquet", "/c.parquet").get(SourceOptions)
    assert source.input_files == ("/a.parquet", "gs://b/b.parquet", "/c.parquet")
    given = parsed(
        "--api_endpoints", "bigquery=http://h:1, storage=http://h:2", "--cluster_by", "a"
    )
    assert given.get(CloudOptions).api_endpoints == ("bigquery=http://h:1", "storage=http://h:2")
    assert given.get(SinkOptions).cluster_by == ("a",)


def test_relative_paths_on_this_machine_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = parsed(
        *("--input_files", "a.csv,./in/*.parquet,../b,/c,gs://b/d", "--model", "package/"),
        *("--output_files", "out", "--dead_letter_files", "gs://b/dead", "--id_column", "id"),
    )
    here = str(tmp_path)
    assert given.get(SourceOptions).input_files == (
        *(f"{here}/a.csv", f"{here}/in/*.parquet", f"{here}/../b", "/c", "gs://b/d"),
    )
    assert given.get(ModelOptions).model == f"{here}/package/"
    assert given.get(SinkOptions).output_files == f"{here}/out"
    assert given.get(FailureOptions).dead_letter_files == "gs://b/dead"
    assert given.get(SourceOptions).id_column == "id"


def test_a_relative_pattern_stays_relative_if_the_folder_would_be_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[x]").mkdir()
    monkeypatch.chdir(tmp_path / "[x]")
    given = parsed("--input_files", "a.csv", "--output_files", "out")
    assert given.get(SourceOptions).input_files == ("a.csv",)
    assert given.get(SinkOptions).output_files == f"{tmp_path}/[x]/out"


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["a b c"], ("a", "b", "c")),
        ([" a\tb \n"], ("a", "b")),
        (["a\nb\r\nc\n"], ("a", "b", "c")),
        (["a, b ,\nc"], ("a", "b", "c")),
        # With commas or several words, a space belongs to a value.
        (["Amount USD,b"], ("Amount USD", "b")),
        (["Amount USD", "b"], ("Amount USD", "b")),
        (['"a,b.csv",c.csv'], ("a,b.csv", "c.csv")),
        (['"my rows.csv"'], ("my rows.csv",)),
        (['"a,b.csv" c.csv'], ("a,b.csv", "c.csv")),
        (['"say ""hi""",b'], ('say "hi"', "b")),
        (['5"disk', "it's"], ('5"disk', "it's")),
    ],
    ids=repr,
)
def test_a_list_is_split_as_a_person_means_it(words: list[str], values: tuple[str, ...]) -> None:
    assert split_list(words) == values


@pytest.mark.parametrize(
    ("words", "conditions"),
    [
        (["day > 9"], ("day>9",)),
        (["day> 9 hour <=3"], ("day>9", "hour<=3")),
        (["day != 9, hour < 3\nn=1"], ("day!=9", "hour<3", "n=1")),
        (["day > 9", "hour\t< 3"], ("day>9", "hour<3")),
        (['"city = New York"'], ("city=New York",)),
        (["city = New York,n=1"], ("city=New York", "n=1")),
        (["n=,day>9"], ("n=", "day>9")),
        (["day > '2026-11-20'"], ("day>'2026-11-20'",)),
        (['day > "2026-11-20"'], ('day>"2026-11-20"',)),
    ],
    ids=repr,
)
def test_conditions_may_have_spaces_around_their_operators(
    words: list[str], conditions: tuple[str, ...]
) -> None:
    assert parsed("--partition_filter", *words).get(SourceOptions).partition_filter == conditions


@examples(
    st.lists(st.text().map(str.strip).filter(lambda text: text and "\0" not in text), min_size=1)
)
def test_a_list_that_is_written_as_a_text_is_read_back(values: list[str]) -> None:
    assert split_list([join_list(values)]) == tuple(values)


def test_tabs_separate_values_but_stay_within_quotes() -> None:
    assert split_list(["a\tb  c"]) == ("a", "b", "c")
    assert split_list(['"a\tb"']) == ("a\tb",)
    assert split_list(['"a\tb"\t"c ""d"""']) == ("a\tb", 'c "d"')


def test_white_space_and_line_ends_around_any_value_are_dropped() -> None:
    argv = [
        *("--output_files", "out \n", "--batch_rows", " 7\n", "--precision", "\tfloat32 "),
        *("--max_dead_letter_share", "0.1 ", "--json_summary", "true\r\n", "--run_id", "r1\n"),
    ]
    given = parsed(*argv)
    assert given.get(SinkOptions).output_files == os.path.abspath("out")
    assert given.get(ModelOptions).batch_rows == 7
    assert given.get(DeviceOptions).precision == "float32"
    assert given.get(FailureOptions).max_dead_letter_share == 0.1
    assert given.get(RunOptions).json_summary is True
    assert given.get(RunOptions).run_id == "r1"
    with pytest.raises(UsageError, match="--output_files has an empty value"):
        parsed("--output_files", " \n")


def test_the_addresses_in_a_list_are_all_checked() -> None:
    with pytest.raises(UsageError, match="not a web address"):
        parsed("--input_files", "a.csv https://h/b.csv")


def test_an_error_about_a_part_of_a_value_says_where_it_was_split(
    tmp_path: Path,
) -> None:
    flags = {"model": "m", "output_files": str(tmp_path)}
    others = [word for name, value in flags.items() for word in (f"--{name}", value)]
    for text, at in ((f"{tmp_path}/a,b.csv", "commas"), (f"{tmp_path}/a b.csv", "spaces")):
        split = parsed("--input_files", text, *others).splits
        message = f"no file matches {tmp_path}/a"
        (note,) = [one.note(message) for one in split]
        assert f"--input_files was split at {at}: put a value that contains" in note
        assert [one.note("out of memory") for one in split] == [""]
    # A list of columns is usually meant as one.
    assert parsed("--output_fields", "a,b", *others).splits == ()


def test_flags_that_are_not_given_have_their_defaults() -> None:
    model, device = parsed().get(ModelOptions), parsed().get(DeviceOptions)
    assert (device.device, device.precision) == ("auto", "float32")
    assert (model.batch_rows, model.model) == (None, None)


def test_the_help_names_the_default_rows_of_a_batch() -> None:
    kind = ModelOptions
    (text,) = [f.metadata["help"] for f in dataclasses.fields(kind) if f.name == "batch_rows"]
    assert text.endswith(f"(default: {BATCH_ROWS}; for streams, {STREAM_BATCH_ROWS})")


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("endpoint_cache_rows", "(default: 0)"),
        ("endpoint_concurrency", "(default: 8)"),
        ("skip_endpoint_check", "to the endpoint"),
        ("endpoint_url", "responds like Vertex AI"),
    ],
)
def test_the_help_shows_each_default_even_0(name: str, ending: str) -> None:
    parser = build_parser("x", "about", [EndpointOptions])
    (action,) = [a for a in parser._actions if a.dest == name]
    assert str(action.help).endswith(ending)


def flags_of(command: Command, *argv: str) -> Parsed:
    return parse_flags(command.name, command.about, command.options, argv)


@pytest.mark.parametrize("rows", [None, "9000"])
def test_a_stream_uses_the_given_number_of_rows_per_batch(
    make_manifest: Any, rows: str | None
) -> None:
    flags = {"model": "m", "input_subscription": SUBSCRIPTION, "output_table": "p.d.t"}
    argv = [text for name, value in flags.items() for text in (f"--{name}", value)]
    argv += [] if rows is None else ["--batch_rows", rows]
    config = stream_config("stream_local", flags_of(STREAM, *argv))
    manifest = make_manifest()
    wanted = int(rows or 4_096)
    assert config.model.batch_rows == wanted
    fields = stream_fields(config.model, None, manifest)
    handler = make_handler(config, manifest, fields, PipelineOptions([]), Endpoints())
    assert handler.batch_rows == wanted
    assert config.model.batch_bytes == handler.batch_bytes == BATCH_BYTES


@pytest.mark.parametrize(
    ("command", "more", "names"),
    [
        (STREAM, (), ()),
        (STREAM, ("--row_timings",), ("decoded_at", "predict_started_at")),
        (
            STREAM_VERTEX,
            ("--endpoint", "7", "--row_timings"),
            ("decoded_at", "requested_at"),
        ),
    ],
)
def test_the_times_of_steps_distinguish_a_model_in_the_worker_from_an_endpoint(
    command: Command, more: tuple[str, ...], names: tuple[str, ...]
) -> None:
    flags = {"model": "m", "input_subscription": SUBSCRIPTION, "output_table": "p.d.t"}
    argv = [text for name, value in flags.items() for text in (f"--{name}", value)]
    assert row_timings(stream_config(command.name, flags_of(command, *argv, *more))) == names


def test_rows_of_the_reference_have_no_times_of_steps() -> None:
    flags = {"model": "m", "input_subscription": SUBSCRIPTION, "output_table": "p.d.t"}
    argv = [text for name, value in flags.items() for text in (f"--{name}", value)]
    argv += ["--output_schema", "reference", "--row_timings"]
    with pytest.raises(UsageError, match="--row_timings has no effect with --output_schema"):
        stream_config("stream_local", flags_of(STREAM, *argv))


@pytest.mark.parametrize(
    ("text", "value"), [((), True), (("true",), True), (("FALSE",), False)], ids=str
)
def test_boolean_flags_take_an_optional_value(text: tuple[str, ...], value: bool) -> None:
    assert parsed("--json_summary", *text).get(RunOptions).json_summary is value


@pytest.mark.parametrize(
    "argv",
    [
        ("--batch_rows", "0"),
        ("--batch_rows", "many"),
        ("--device", "gpu"),
        ("--precision", "fp8"),
        ("--model_digest", "12ab"),
        ("--run_id", "../up"),
        ("--run_id", "a/b"),
        ("--input_files", ","),
        ("--debug", "perhaps"),
        ("--model",),
        ("--read_method", "rest"),
        ("--write_disposition", "replace"),
        ("--output_schema", "mine"),
        ("--max_bytes_billed", "-1"),
        ("--retry_seconds", "0"),
        ("--cluster_by", " , "),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_a_usage_error_that_names_the_flag(argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=re.escape(argv[0])) as caught:
        parsed(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--batch_rows", "0"), "--batch_rows must be at least 1, got 0"),
        (("--batch_bytes", "0"), "--batch_bytes must be at least 1, got 0"),
        (("--batch_rows", "1.5"), "--batch_rows must be a whole number, got 1.5"),
        (("--batch_rows",), "--batch_rows needs a value; see --help"),
        (
            ("--batch_rows", "9223372036854775808"),
            "--batch_rows must be at most 9223372036854775807, got 9223372036854775808",
        ),
        (
            ("--max_dead_letter_share", "2"),
            "--max_dead_letter_share must be a number from 0 to 1, got 2",
        ),
        (
            ("--precision", "fp8"),
            "--precision must be one of float32, tf32, bf16, fp16, auto, got fp8",
        ),
        (("--device", "gpu"), "--device must be auto, cpu, cuda or cuda:N, got gpu"),
    ],
    ids=str,
)
def test_a_wrong_value_is_described_in_words(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*argv)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("stop_after_seconds", 999_999_999),
        ("retry_seconds", 999_999_999),
        ("report_seconds", 999_999_999),
        ("window_seconds", 999_999_999),
        ("deduplicate_seconds", 999_999_999),
        ("max_batch_wait_ms", 999_999_999),
        ("file_seconds", 86_400),
    ],
)
def test_durations_are_limited_to_what_clocks_and_folders_of_days_hold(
    name: str, limit: int
) -> None:
    for fit in (1, limit // 2, limit - 1, limit):
        assert flags_of(STREAM, f"--{name}", str(fit))
    for unfit in (0, limit + 1, limit * 10):
        with pytest.raises(UsageError, match=f"--{name} must be from 1 to {limit}, got {unfit}"):
            flags_of(STREAM, f"--{name}", str(unfit))


def test_no_error_describes_a_value_by_a_regular_expression() -> None:
    for kind in {kind for command in [*TEMPLATES, REPLAY] for kind in command.options}:
        for f in dataclasses.fields(kind):
            if form := f.metadata["form"]:
                assert not re.search(r"[\\^$|*?]|\[", form.must), f.name


def test_unknown_flags_are_left_to_beam_and_rejected_if_beam_does_not_know_them() -> None:
    assert parsed("--runner", "FnApiRunner").beam_args == ["--runner", "FnApiRunner"]
    with pytest.raises(UsageError, match=r"--input_file \(did you mean '--input_files"):
        beam_options(["--input_file", "x"])
    with pytest.raises(UsageError, match="'stray'"):
        beam_options(["stray"])


def test_a_job_is_named_after_its_pipeline_unless_a_flag_names_it() -> None:
    google = beam_options([], name="stream_vertex").view_as(GoogleCloudOptions)
    assert re.fullmatch(r"pytorch-streaming-vertex-\d{8}-\d{6}", google.job_name)
    given = beam_options(["--job_name", "mine"], name="batch_local")
    assert given.view_as(GoogleCloudOptions).job_name == "mine"
    assert JOB_NAMES.keys() == {command.name for command in [*TEMPLATES, REPLAY]}


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("FooRunner", ""),
        ("Dataflo", " (did you mean 'DataflowRunner'?)"),
        ("PrismRuner", " (did you mean 'PrismRunner'?)"),
        ("SprakRunner", " (did you mean 'SparkRunner'?)"),
        ("Runner", ""),
    ],
)
def test_a_runner_that_beam_does_not_have_is_rejected(name: str, similar: str) -> None:
    text = re.escape(f"unknown --runner {name}{similar}; choose from DataflowRunner, ")
    with pytest.raises(UsageError, match=text):
        beam_options(["--runner", name])


@pytest.mark.parametrize("name", ["dataflow", "DataflowRunner", "PRISMRUNNER"])
def test_runners_can_be_named_as_beam_accepts_them(name: str) -> None:
    assert not runs_in_process(beam_options(["--runner", name]))


def test_an_empty_value_is_rejected() -> None:
    with pytest.raises(UsageError, match="--id_column has an empty value"):
        parsed("--id_column", "")


def test_without_a_runner_the_pipeline_runs_in_this_process() -> None:
    assert runs_in_process(beam_options([]))
    assert not runs_in_process(beam_options(["--runner", "DataflowRunner"]))


def test_a_view_of_beams_options_is_built_once_and_shares_its_values() -> None:
    options = beam_options(["--project", "a-project"])
    view = options.view_as(GoogleCloudOptions)
    assert options.view_as(GoogleCloudOptions) is view
    options.view_as(StandardOptions).streaming = True
    view.project = "another"
    assert options.get_all_options()["streaming"] is True
    assert options.view_as(GoogleCloudOptions).project == "another"


def test_copies_of_beams_options_have_views_of_their_own() -> None:
    # Beam pickles a changed copy of these values, which earlier views would not share.
    options = beam_options(["--impersonate_service_account", "someone@p"])
    view = options.view_as(GoogleCloudOptions)
    for copied in (copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        copied.view_as(GoogleCloudOptions).project = "another"
        assert copied.get_all_options()["project"] == "another"
        assert view.project is None


def test_no_flag_is_declared_twice_or_owned_by_beam() -> None:
    names = [f.name for kind in COMMAND.options for f in dataclasses.fields(kind)]
    assert len(names) == len(set(names))
    # Beam's flag for one wheel, --extra_package, remains available.
    assert all_flags() & beam_flags().keys() == {"--extra_packages"}


def test_every_flag_has_what_a_template_needs() -> None:
    for kind in COMMAND.options:
        for f in dataclasses.fields(kind):
            assert f.metadata["label"]
            assert f.metadata["help"]
            if f.metadata["form"] and f.default is not None:
                assert re.fullmatch(f.metadata["form"].regex, str(f.default))


def test_help_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys\n"
        "from pipelines.batch_local import COMMAND\n"
        "from pipelines.command import main\n"
        "try:\n    main(COMMAND, ['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'apache_beam', 'pyarrow', 'numpy', 'google.auth', 'grpc', 'requests'}\n"
        "heavy |= {'http.client', 'ssl', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--input_files" in done.stdout
