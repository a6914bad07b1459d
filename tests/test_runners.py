"""The runner that a pipeline gets for each way to name one, and the runners that are rejected."""

import re
import threading
import uuid
from subprocess import Popen
from types import SimpleNamespace
from typing import Any, NoReturn

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.job_server import JobServer
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineRunner

from common.errors import RunnerError, UsageError
from examples.local_cloud import LocalCloud, free_port
from pipelines import batch_local, stream_local
from pipelines.batch import elsewhere
from pipelines.batch.elsewhere import _servers_stopped, _wait_until_end, run_elsewhere
from pipelines.beam_args import beam_options, runs_in_process, runs_on_dataflow, shares_process
from pipelines.command import Command, main
from pipelines.launch.command import PIPELINES
from pipelines.replay.command import COMMAND as REPLAY
from pipelines.runners import choose_runner, is_dataflow

HERE = "FnApiRunner"
DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
# Each runner of Beam: the runner that a batch run and a stream get, None if it is rejected.
CHOSEN: dict[str, tuple[str | None, str | None]] = {
    "BundleBasedDirectRunner": (HERE, HERE),
    "DaskRunner": (None, None),
    "DataflowRunner": ("DataflowRunner", "DataflowRunner"),
    "DirectRunner": (HERE, HERE),
    "FlinkRunner": ("FlinkRunner", "FlinkRunner"),
    "FnApiRunner": (HERE, HERE),
    "InteractiveRunner": (None, None),
    "KafkaStreamsRunner": (None, None),
    "PortableRunner": ("PortableRunner", None),
    "PrismRunner": ("PrismRunner", "PrismRunner"),
    "SparkRunner": ("SparkRunner", None),
    "SwitchingDirectRunner": (HERE, HERE),
    "TestDataflowRunner": (None, None),
    "TestDirectRunner": (None, None),
}
PATHS = {path.rpartition(".")[2]: path for path in (*StandardOptions.ALL_KNOWN_RUNNERS, DASK)}


class OwnRunner(PipelineRunner):
    pass


def spellings(name: str) -> list[str]:
    """Return the ways to type the name of a runner."""
    short = name.removesuffix("Runner")
    return [name, name.lower(), name.upper(), short, short.lower(), PATHS[name]]


CASES = [(typed, *chosen) for name, chosen in CHOSEN.items() for typed in spellings(name)]


def test_every_runner_that_beam_lists_is_in_the_table() -> None:
    assert CHOSEN.keys() == {*StandardOptions.KNOWN_RUNNER_NAMES, "DaskRunner"}


@pytest.mark.parametrize(("typed", "batch", "stream"), CASES)
def test_a_runner_is_chosen_in_every_spelling(
    typed: str, batch: str | None, stream: str | None
) -> None:
    for streaming, expected in ((False, batch), (True, stream)):
        if expected is not None:
            assert choose_runner(typed, streaming=streaming) == expected
            continue
        with pytest.raises(UsageError) as raised:
            choose_runner(typed, streaming=streaming)
        line = str(raised.value)
        assert line.startswith(f"--runner {typed} ")
        assert "leave out --runner" in line
        assert "\n" not in line
        what = "read a stream from Pub/Sub" if streaming else "run batches"
        loses = "dask" in typed.lower() and not streaming
        reason = "loses rows: Beam's Dask" if loses else f"cannot {what}: use one of DataflowRunner"
        assert reason in line


def test_a_batch_run_and_a_stream_without_a_runner_run_in_this_process() -> None:
    assert choose_runner(None, streaming=False) == HERE
    assert choose_runner(None, streaming=True) == HERE
    for streaming in (False, True):
        assert runs_in_process(beam_options([], streaming=streaming))
        assert runs_in_process(beam_options(["--runner=direct"], streaming=streaming))


@pytest.mark.parametrize("typed", spellings("DataflowRunner"))
def test_dataflow_is_recognised_in_every_spelling(typed: str) -> None:
    assert is_dataflow(typed)
    for streaming in (False, True):
        assert runs_on_dataflow(beam_options(["--runner", typed], streaming=streaming))


@pytest.mark.parametrize("typed", [None, "Flink", "TestDataflowRunner", "own.module.Runner"])
def test_other_runners_are_not_dataflow(typed: str | None) -> None:
    assert not is_dataflow(typed)


def test_a_runner_class_that_does_not_belong_to_beam_is_accepted() -> None:
    for typed in ("own.module.SparkRunner", "apache_beam_too.Runner"):
        assert choose_runner(typed, streaming=True) == typed
        assert choose_runner(typed, streaming=False) == typed
    # A class in a package of Beam that Beam does not list.
    unnamed = "apache_beam.runners.some.SomeRunner"
    assert choose_runner(unnamed, streaming=False) == unnamed
    with pytest.raises(UsageError, match="SomeRunner cannot read a stream from Pub/Sub"):
        choose_runner(unnamed, streaming=True)


@pytest.mark.parametrize("typed", ["no_such_module.Runner", "pipelines.runners.No", "..x", "a."])
def test_a_path_without_a_class_is_rejected(typed: str) -> None:
    for streaming in (False, True):
        with pytest.raises(
            UsageError, match="must be the name of a Beam runner or the path of a class"
        ):
            beam_options([f"--runner={typed}"], streaming=streaming)


def test_a_runner_class_of_your_own_becomes_the_runner() -> None:
    typed = f"{__name__}.OwnRunner"
    options = beam_options([f"--runner={typed}"], streaming=True)
    assert options.view_as(StandardOptions).runner == typed


@pytest.mark.parametrize(
    "typed", ["os.path.join", "unittest.TestCase", "common.errors.MillraceError"]
)
def test_a_path_of_something_that_is_no_runner_is_rejected(typed: str) -> None:
    for streaming in (False, True):
        with pytest.raises(UsageError, match=f"--runner {typed} must be .* not a subclass of"):
            beam_options([f"--runner={typed}"], streaming=streaming)


def test_a_negative_number_of_workers_is_rejected() -> None:
    with pytest.raises(UsageError, match="--direct_num_workers must be at least 0, got -4"):
        beam_options(["--direct_num_workers=-4"])


@pytest.mark.parametrize("number", [0, 2])
def test_a_stream_in_this_process_has_one_worker(number: int) -> None:
    with pytest.raises(UsageError, match=r"must be 1 for a stream, got .*; use --stream_r"):
        beam_options([f"--direct_num_workers={number}"], streaming=True)


def test_a_stream_in_this_process_has_its_worker_here() -> None:
    with pytest.raises(UsageError, match="must not be multi_processing for a stream"):
        beam_options(["--direct_running_mode=multi_processing"], streaming=True)
    assert beam_options(["--direct_running_mode=multi_threading"], streaming=True)
    assert beam_options(["--direct_running_mode=multi_processing"])


@pytest.mark.parametrize(
    ("args", "shared"),
    [
        ([], True),
        (["--runner=PrismRunner"], True),
        (["--runner=PrismRunner", "--environment_type=LOOPBACK"], True),
        (["--runner=PrismRunner", "--environment_type=EXTERNAL"], False),
        (["--runner=PrismRunner", "--experiments=use_loopback_process_worker=True"], False),
        (["--runner=FlinkRunner"], True),
        (["--runner=FlinkRunner", "--flink_master=flink:8081"], False),
        (
            ["--runner=FlinkRunner", "--flink_master=flink:8081", "--environment_type=loopback"],
            True,
        ),
    ],
)
def test_whether_workers_are_threads_of_this_process(args: list[str], shared: bool) -> None:
    assert shares_process(beam_options(args, streaming=True)) == shared


@pytest.mark.parametrize("typed", ["dask", "DaskRunner", DASK])
def test_dask_is_rejected_before_its_own_flags_are(typed: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--runner {typed} loses rows: Beam's Dask")):
        beam_options(["--runner", typed, "--dask_client_address", "localhost:1"])


@pytest.mark.parametrize("typed", ["portable", "spark", "PortableRunner", DASK])
@pytest.mark.parametrize("command", ["stream_local", "stream_vertex"])
def test_a_stream_is_rejected_in_one_line_before_any_request(
    command: str, typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No server listens on this port: a request would wait and then fail with another error.
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"localhost:{free_port()}")
    flags = {
        "input_subscription": "projects/p/subscriptions/s",
        "model": "/no/model",
        "endpoint_url": "http://localhost:1",
        "output_topic": "projects/p/topics/t",
        "runner": typed,
    }
    if command == "stream_local":
        del flags["endpoint_url"]
    argv = [text for name, value in flags.items() for text in (f"--{name}", value)]
    for more in ([], ["--dry_run"]):
        assert main(PIPELINES[command], [*argv, *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"error: --runner {typed} cannot read a stream from Pub/Sub: ")


def test_no_subscription_is_created_for_a_rejected_stream(
    stream_emulators: LocalCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = stream_emulators.cloud
    place = f"projects/{cloud.project}"
    topic = f"{place}/topics/t{uuid.uuid4().hex}"
    cloud.publisher().create_topic(name=topic)
    argv = ["--input_topic", topic, "--create_subscription", "--model", "/no/model"]
    argv += ["--output_topic", f"{place}/topics/out", "--runner", "SparkRunner"]
    argv += ["--api_endpoints", f"pubsub={stream_emulators.endpoints.pubsub}"]
    assert main(stream_local.COMMAND, argv) == 2
    assert "SparkRunner cannot read a stream from Pub/Sub" in capsys.readouterr().err
    assert list(cloud.publisher().list_topic_subscriptions(topic=topic)) == []


@pytest.mark.parametrize("command", [batch_local.COMMAND, REPLAY], ids=lambda one: one.name)
def test_dask_is_rejected_for_batch_runs(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--input_files", "x", "--model", "m", "--output_files", "o", "--runner", "dask"]
    assert main(command, argv) == 2
    assert capsys.readouterr().err.startswith("error: --runner dask loses rows: ")


class Fails(beam.Pipeline):
    """A pipeline whose runner fails."""

    def __init__(self, text: str) -> None:
        super().__init__("FnApiRunner")
        self.text = text

    def run(self, *_: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Unable to fetch remote prism binary at https://example.com/prism.zip",
            "Prism cannot be downloaded from https://example.com/prism.zip: get it with `make ",
        ),
        (
            "Unable to fetch remote job server jar at https://example.com/a.jar: 404",
            "the runner's job server cannot be downloaded from https://example.com/a.jar: download",
        ),
        (
            "Traceback\nModuleNotFoundError: No module named 'transforms.files'\n",
            "the workers cannot import 'transforms.files': install Millrace on them",
        ),
        (
            "Pipeline job-001 failed in state FAILED: bundle inst033 stage-027 failed:SDK worker "
            "disconnected: worker[x], 1 active instructions, error: context canceled",
            "a worker of the runner has ended before the job: it was killed, or its machine had",
        ),
        ("prism error: didn't get control connection to a:1 after 1m", "no worker has connected"),
    ],
)
def test_what_a_runner_lacks_is_named(text: str, line: str) -> None:
    with pytest.raises(RunnerError) as caught:
        run_elsewhere(Fails(text), PipelineOptions([]))
    assert str(caught.value).startswith(line)


def test_another_error_of_a_run_is_raised_unchanged() -> None:
    with pytest.raises(RuntimeError, match="a row"):
        run_elsewhere(Fails("a row"), PipelineOptions([]))


def test_workers_that_lose_a_runner_that_stops_print_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped, printed = threading.Event(), list[Any]()
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(args.exc_value))

    class Server(JobServer):
        def start(self) -> str:
            return ""

        def stop(self) -> None:
            stopped.set()

    def work(error: Exception) -> None:
        stopped.wait()
        raise error

    runner = PortableRunner()
    runner.default_job_server = lambda _: Server()
    errors = [grpc.RpcError("Stream removed"), ValueError("of the worker")]
    with _servers_stopped(runner):
        runner.default_job_server(PipelineOptions([]))
        for error in errors:
            threading.Thread(target=work, args=[error], name="run_worker_1", daemon=True).start()
    assert printed == errors[1:]


def test_a_job_that_goes_on_without_its_worker_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elsewhere, "_GRACE_SECONDS", 0.1)
    ended = threading.Event()
    job: Any = SimpleNamespace(wait_until_finish=ended.wait)
    with Popen(["true"]) as worker, pytest.raises(RunnerError, match="a worker of the runner has"):
        _wait_until_end(job, [worker])
    ended.set()
    _wait_until_end(job, [worker])
