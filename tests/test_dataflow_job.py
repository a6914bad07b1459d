"""The content of a Dataflow job that is not started: facts, steps, coders, labels and hints."""

import base64
import bz2
import contextlib
import json
import re
import shlex
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext

from cloud.clients import Cloud
from cloud.endpoints import VARIABLES, Endpoints
from examples.local_cloud import LocalCloud
from pipelines import batch_local, batch_vertex, stream_local, stream_vertex
from pipelines.beam_args import beam_options
from pipelines.command import main
from pipelines.dataflow.facts import JobFacts, label_value, read_facts
from pipelines.dataflow.held_state import holds_state
from pipelines.dataflow.links import attach_command, console_link
from pipelines.dataflow.start import ACCELERATOR, ask_for_accelerator
from pipelines.options import DeviceOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
COMMANDS = {
    m.COMMAND.name: m.COMMAND for m in (batch_local, batch_vertex, stream_local, stream_vertex)
}
FACTS = JobFacts(
    pipeline="batch_local",
    run_id="r+1",
    model="Fraud 2.0",
    model_digest="ab" * 32,
    report="gs://b/o/r+1/report.json",
    staging=("gs://b/o/.staging/r+1",),
    max_dead_letter_share=0.5,
)


def argv(**flags: Any) -> list[str]:
    """Return flags as arguments: True is a flag without a value, and None is left out."""
    given = {name: value for name, value in flags.items() if value is not None}
    return [t for n, v in given.items() for t in ([f"--{n}"] if v is True else [f"--{n}", str(v)])]


def upload(cloud: Cloud, folder: Path, place: str) -> None:
    """Copy the files of a folder to a place in the emulator's bucket."""
    bucket = cloud.storage().bucket("bucket")
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.blob(f"{place}/{path.relative_to(folder)}").upload_from_filename(str(path))


@pytest.mark.parametrize(
    "facts",
    [FACTS, JobFacts(pipeline="stream_local", run_id="r", model="m 1", model_digest="0" * 64)],
)
def test_the_facts_that_a_job_carries_can_be_read_again(facts: JobFacts) -> None:
    assert read_facts({"project": "p", **facts.options()}) == facts


def test_a_job_that_millrace_did_not_start_has_no_facts() -> None:
    assert read_facts({"project": "p", "runner": "DataflowRunner"}) is None


def test_labels_hold_only_characters_that_google_allows() -> None:
    assert FACTS.labels() == {
        "millrace_pipeline": "batch_local",
        "millrace_run": "r_1",
        "millrace_model": "fraud_2_0",
        "millrace_digest": "abababababababab",
    }
    assert label_value("x" * 99) == "x" * 63


def test_a_job_has_a_link_to_the_console_and_a_command_that_follows_it() -> None:
    assert console_link("p", "r", "j").endswith("/dataflow/jobs/r/j?project=p")
    command = attach_command("p", "r", "j", Endpoints())
    assert command == "python -m pipelines.launch --attach j --project p --region r"
    places = Endpoints(dataflow="http://[::1]:1", storage="localhost:2", bigquery="localhost:3")
    words = shlex.split(attach_command("p", "r", "a job", places))
    assert words[3:5] == ["--attach", "a job"]
    assert words[-2:] == ["--api_endpoints", "dataflow=http://[::1]:1,storage=localhost:2"]


class Jobs:
    """The four pipelines, written as jobs but not started: the JSON and the staged pipelines."""

    def __init__(self, servers: LocalCloud, example: Path) -> None:
        self.cloud = servers.cloud
        project = self.cloud.project
        bucket = self.cloud.storage().bucket("bucket")
        bucket.blob("in/rows.parquet").upload_from_filename(str(example / "transactions.parquet"))
        upload(self.cloud, example / "model", "model")
        publisher, subscriber = self.cloud.publisher(), self.cloud.subscriber()
        for topic in ("rows-in", "rows-out", "rows-bad"):
            publisher.create_topic(name=f"projects/{project}/topics/{topic}")
        for name in ("local", "vertex"):
            subscriber.create_subscription(
                name=f"projects/{project}/subscriptions/{name}",
                topic=f"projects/{project}/topics/rows-in",
            )
        files = {"input_files": "gs://bucket/in/rows.parquet", "output_files": "gs://bucket/out"}
        topics = {
            "output_topic": f"projects/{project}/topics/rows-out",
            "dead_letter_topic": f"projects/{project}/topics/rows-bad",
        }
        dataset = f"{project}.streams"
        endpoint = {"endpoint_url": "http://endpoint.test", "skip_endpoint_check": True}
        self.flags: dict[str, dict[str, Any]] = {
            "batch_local": {**files, "device": "cuda", "labels": "team=risk"},
            "batch_vertex": {**files, **endpoint, "spread_batches": "yes"},
            "stream_local": {
                "input_subscription": f"projects/{project}/subscriptions/local",
                **topics,
                "output_table": f"{dataset}.local",
                "output_files": "gs://bucket/stream",
                "deduplicate_seconds": 60,
                "max_batch_wait_ms": 100,
            },
            "stream_vertex": {
                "input_subscription": f"projects/{project}/subscriptions/vertex",
                **endpoint,
                "output_table": f"{dataset}.vertex",
                "dead_letter_table": f"{dataset}.bad",
                "dead_letter_files": "gs://bucket/stream_vertex",
            },
        }

    def write(self, name: str) -> None:
        """Write the job of a pipeline to the bucket."""
        common = {
            "runner": "DataflowRunner",
            "project": "my-project",
            "region": "us-central1",
            "temp_location": f"gs://bucket/tmp/{name}",
            "template_location": f"gs://bucket/templates/{name}.json",
            "sdk_container_image": "gcr.io/my-project/millrace:1",
            "model": "gs://bucket/model",
            "run_id": f"{name}+1",
            "billing_project": self.cloud.project,
            "no_auth": True,
        }
        assert main(COMMANDS[name], argv(**common, **self.flags[name])) == 0

    def json(self, name: str) -> dict[str, Any]:
        blob = self.cloud.storage().bucket("bucket").blob(f"templates/{name}.json")
        return json.loads(blob.download_as_bytes())  # type: ignore[no-any-return]

    def options(self, name: str) -> dict[str, Any]:
        return self.json(name)["environment"]["sdkPipelineOptions"]["options"]  # type: ignore[no-any-return]

    def pipeline(self, name: str) -> beam_runner_api_pb2.Pipeline:
        path = self.options(name)["pipelineUrl"].removeprefix("gs://bucket/")
        return beam_runner_api_pb2.Pipeline.FromString(
            self.cloud.storage().bucket("bucket").blob(path).download_as_bytes()
        )


@pytest.fixture(scope="module")
def jobs(stream_emulators: LocalCloud, example: Path) -> Iterator[Jobs]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, address in stream_emulators.environment.items():
            patch.setenv(variable, address)
        jobs = Jobs(stream_emulators, example)
        for name in COMMANDS:
            jobs.write(name)
        yield jobs


PROTOS = pytest.mark.parametrize("name", COMMANDS)


@PROTOS
def test_steps_keep_the_names_by_which_an_update_hands_over_their_state(
    name: str, jobs: Jobs
) -> None:
    """If you rename a step on purpose, rename it in the file too, and say so in the CHANGELOG."""
    known = json.loads((Path(__file__).parent / "dataflow_steps.json").read_text())
    steps = jobs.pipeline(name).components.transforms.values()
    assert (
        sorted(s.unique_name for s in steps if s.unique_name and not s.subtransforms) == known[name]
    )


@PROTOS
def test_steps_that_hold_state_are_recognized_by_their_names(name: str, jobs: Jobs) -> None:
    steps = [
        step
        for step in jobs.pipeline(name).components.transforms.values()
        if not step.subtransforms and step.spec.urn == common_urns.primitives.PAR_DO.urn
    ]
    for step in steps:
        payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
        has_state = bool(payload.state_specs or payload.timer_family_specs)
        assert holds_state(step.unique_name, "par_do") == has_state, step.unique_name


def tree(coder: coders.Coder) -> str:
    """Return the name of a coder with the names of the coders in it."""
    parts = [tree(part) for part in coder._get_component_coders() or ()]
    return f"{type(coder).__name__}({', '.join(parts)})" if parts else type(coder).__name__


# These steps shuffle paths, staged files, manifests, counts and figures: a few objects for each
# file, but none for a row.
PICKLED = {
    "ScoreRows/Read/SpreadFiles/ReshufflePerKey/GroupByKey",
    "ScoreRows/Read/SpreadRanges/ReshufflePerKey/GroupByKey",
    "ScoreRows/Read/Settle/ByPlace",
    "ScoreRows/Commit/FixStaged/ReshufflePerKey/GroupByKey",
    "ScoreRows/Commit/SumCounts/GroupByKey",
    "ScoreRows/Scores/Merge/CombinePerKey/GroupByKey",
    "ScoreStream/WriteRows/Fix/ReshufflePerKey/GroupByKey",
    "ScoreStream/WriteDeadLetters/Fix/ReshufflePerKey/GroupByKey",
}


@PROTOS
def test_rows_and_messages_are_never_pickled_between_workers(name: str, jobs: Jobs) -> None:
    proto = jobs.pipeline(name)
    context, steps = PipelineContext(proto.components), proto.components.transforms.values()

    def coders_of(collections: Any) -> str:
        ids = (proto.components.pcollections[c].coder_id for c in collections.values())
        return " ".join(tree(context.coders.get_by_id(ident)) for ident in ids)

    crossed = {
        s.unique_name: coders_of(s.inputs)
        for s in steps
        if s.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn or keeps_state(s)
    }
    # Beam pickles the time of a shuffled batch, but not the batch.
    pickled = {
        step
        for step, found in crossed.items()
        if re.search("FastPrimitives|Pickle", found) and "RecordBatchCoder" not in found
    }
    assert crossed
    assert pickled == PICKLED & {step.unique_name for step in steps}
    fused = [
        coders_of(s.outputs)
        for s in steps
        if re.search("/(Predict|Score)/", s.unique_name) and s.spec.urn
    ]
    assert len(fused) >= 3
    assert not any(re.search("FastPrimitives|Pickle", found) for found in fused)


def keeps_state(step: Any) -> bool:
    if step.spec.urn != common_urns.primitives.PAR_DO.urn:
        return False
    payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
    return bool(payload.state_specs or payload.timer_family_specs)


def unpacked(content: bytes) -> bytes:
    """Return a staged pipeline with everything that Beam has compressed in it by bz2 or zlib."""
    for text in re.findall(rb"(?:eN|Qlpo)[A-Za-z0-9+/]{20,}=*", content):
        packed = base64.b64decode(text[: len(text) // 4 * 4])
        reader = bz2.BZ2Decompressor() if text.startswith(b"Q") else zlib.decompressobj()
        with contextlib.suppress(zlib.error, OSError):
            content += reader.decompress(packed)
    return content


@PROTOS
def test_a_job_holds_no_row_no_weights_and_no_credentials(
    name: str, jobs: Jobs, example: Path
) -> None:
    content = unpacked(jobs.pipeline(name).SerializeToString())
    manifest = json.loads((example / "model/model.json").read_text())
    assert manifest["sha256"].encode() in content
    rows = pq.read_table(example / "transactions.parquet").slice(0, 100).to_pylist()
    pairs = [(row["V1"], row["V2"]) for row in rows if None not in (row["V1"], row["V2"])]
    given = [struct.pack(form, *pair) for pair in pairs for form in ("<ff", "<dd")]
    given += [f"{first},{second}".encode() for first, second in pairs]
    given += [row["transaction_id"].encode() for row in rows]
    weights = (example / "model" / manifest["file"]).read_bytes()
    given += [weights[at : at + 48] for at in range(2_000, len(weights) - 48, 1_000)]
    # pickle writes a float as eight bytes, the highest first.
    own = [cell for row in manifest["golden"]["inputs"]["transaction"] for cell in row]
    own += [found[edge] for found in manifest["statistics"].values() for edge in ("min", "max")]
    given += [struct.pack(">d", value) for value in own if value != round(value)]
    assert len(given) > 500
    assert not [part for part in given if part in content]
    assert b"google.auth" not in content
    assert b"google.oauth2" not in content


@PROTOS
def test_a_job_names_its_run_and_carries_the_labels_of_millrace_and_of_the_user(
    name: str, jobs: Jobs
) -> None:
    job, facts = jobs.json(name), read_facts(jobs.options(name))
    assert facts is not None
    assert (facts.pipeline, facts.run_id) == (name, f"{name}+1")
    assert job["labels"].items() >= facts.labels().items()
    assert job["labels"]["millrace_run"] == f"{name}_1"
    assert job["type"] == f"JOB_TYPE_{'BATCH' if name.startswith('batch') else 'STREAMING'}"
    if name == "batch_local":
        assert job["labels"]["team"] == "risk"
    if name.startswith("batch"):
        assert facts.report == f"gs://bucket/out/{name}+1/report.json"
        assert facts.staging == (f"gs://bucket/out/.staging/{name}+1",)
    else:
        assert facts.subscription == jobs.flags[name]["input_subscription"]


@PROTOS
def test_workers_with_an_accelerator_are_requested_for_a_model_that_runs_on_one(
    name: str, jobs: Jobs
) -> None:
    (environment,) = jobs.pipeline(name).components.environments.values()
    requested = {common_urns.resource_hints.ACCELERATOR.urn: ACCELERATOR.partition("=")[2].encode()}
    assert dict(environment.resource_hints) == (requested if name == "batch_local" else {})
    (pool,) = jobs.json(name)["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == "gcr.io/my-project/millrace:1"


@pytest.mark.parametrize(
    ("flag", "hints"),
    [
        ("--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1", []),
        # The launcher of Flex Templates passes service options as experiments.
        ("--experiments=worker_accelerator=type:nvidia-l4;count:1", []),
        (
            "--resource_hints=accelerator=type:nvidia-l4;count:1",
            ["accelerator=type:nvidia-l4;count:1"],
        ),
        ("--resource_hints=min_ram=16GB", ["min_ram=16GB", ACCELERATOR]),
    ],
)
def test_an_accelerator_that_a_flag_names_is_the_only_one(flag: str, hints: list[str]) -> None:
    options = beam_options([flag])
    ask_for_accelerator(DeviceOptions(device="cuda"), options)
    assert list(options.view_as(StandardOptions).resource_hints) == hints


GOOD = {
    "runner": "DataflowRunner",
    "project": "my-project",
    "region": "us-central1",
    "temp_location": "gs://bucket/tmp",
    "sdk_container_image": "an/image",
    "input_files": "gs://bucket/rows.parquet",
    "model": "gs://bucket/model",
    "output_files": "gs://bucket/out",
}


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (
            {"project": None, "region": None, "temp_location": None},
            2,
            "add --project P --region us-central1 --temp_location gs://BUCKET/tmp",
        ),
        ({"region": None}, 2, "DataflowRunner needs more flags: add --region us-central1\n"),
        ({"runner": "dataflow", "region": None}, 2, "add --region us-central1\n"),
        ({"region": "us-central1-a"}, 2, "--region us-central1-a: unknown region"),
        ({"project": "123456"}, 2, "--project 123456 is invalid: use the id of the project"),
        ({"job_name": "Fraud_1"}, 2, "--job_name Fraud_1 is invalid: use lowercase letters"),
        ({"num_workers": 9, "max_num_workers": 2}, 2, "--num_workers 9 is more than --max_num_w"),
        ({"labels": "Team=x"}, 2, "--labels Team=x is invalid: use KEY=VALUE"),
        (
            {"region": None, "sdk_container_image": None},
            2,
            "add --region us-central1; each worker installs Millrace's wheel when it starts, or "
            "add --sdk_container_image IMAGE (`make image` builds one)\n",
        ),
        (
            {"sdk_container_image": None, "no_use_public_ips": True},
            2,
            "--no_use_public_ips: workers without public addresses cannot install Millrace's wheel",
        ),
        (
            {"sdk_container_image": None, "device": "cuda:0"},
            2,
            "without an image, workers install the CPU build of torch, which uses no GPU: add",
        ),
        (
            {"sdk_container_image": None, "resource_hints": "accelerator=type:nvidia-l4;count:1"},
            2,
            "(`make image TORCH=cuda` builds one), or request no GPU\n",
        ),
        (
            {"sdk_container_image": None, "requirements_cache": "here"},
            2,
            "--requirements_cache here: without an image, workers download their packages",
        ),
        ({"sdk_container_image": None}, 1, "no usable Google Cloud credentials"),
        ({"no_use_public_ips": True, "device": "cuda"}, 1, "no usable Google Cloud credentials"),
        (
            {"input_files": "/data/rows.parquet"},
            2,
            "--input_files /data/rows.parquet: Dataflow workers",
        ),
        ({"model": "model"}, 2, "pass --model gs://BUCKET/..."),
        ({"output_files": "out"}, 2, "pass --output_files gs://BUCKET/..."),
        ({"dead_letter_files": "bad"}, 2, "pass --dead_letter_files gs://BUCKET/..."),
        ({"temp_location": "/tmp"}, 2, "--temp_location /tmp: expected gs://BUCKET/FOLDER"),
        ({"staging_location": "gs://b"}, 2, "--staging_location gs://b: expected gs://BUCKET/FOL"),
        ({"dry_run": "perhaps"}, 2, "--dry_run must be true or false, got 'perhaps'"),
        ({}, 1, "no usable Google Cloud credentials"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line_before_anything_is_read(
    flags: dict[str, Any],
    code: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/missing/credentials.json")
    assert main(batch_local.COMMAND, argv(**GOOD | flags)) == code
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.usefixtures("beam_processes")
def test_a_job_can_be_written_without_a_service(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = GOOD | {
        "temp_location": tmp_path / "tmp",
        "dataflow_endpoint": "http://localhost:1",
        "template_location": tmp_path / "new/job.json",
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path / "out",
    }
    assert main(batch_local.COMMAND, argv(**flags)) == 0
    assert json.loads((tmp_path / "new/job.json").read_text())["type"] == "JOB_TYPE_BATCH"
    printed = capsys.readouterr().out
    assert str(tmp_path / "new/job.json") in printed
    assert "--attach" not in printed


@pytest.mark.parametrize("runner", [None, "DataflowRunner"])
def test_a_dry_run_prints_the_job_and_creates_nothing(
    runner: str | None, example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path / "out",
        "run_id": "r",
    }
    if runner is not None:
        flags |= {
            "runner": runner,
            "project": "my-project",
            "region": "us-central1",
            "temp_location": tmp_path / "tmp",
            "dataflow_endpoint": "http://localhost:1",
            "s3_secret_access_key": "hush",
        }
    assert main(batch_local.COMMAND, argv(**flags, dry_run=True)) == 0
    printed = capsys.readouterr().out
    assert "nothing was created or started" in printed
    assert re.search(r"^run_id +r$", printed, re.MULTILINE)
    assert ("label" in printed) == (runner is not None)
    assert "hush" not in printed
    steps = re.findall(r"^step +(.*)$", printed, re.MULTILINE)
    assert steps[:2] == ["ScoreRows/Read", "ScoreRows/Predict"]
    assert steps[-1] == "ScoreRows/Commit"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_stream_needs_no_service(
    example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "localhost:1")
    flags = {
        **{name: GOOD[name] for name in ("runner", "project", "region")},
        "temp_location": example,
        "dataflow_endpoint": "http://localhost:1",
        "input_topic": "projects/my-project/topics/rows",
        "create_subscription": True,
        "model": example / "model",
        "output_topic": "projects/my-project/topics/out",
        "dead_letter_topic": "projects/my-project/topics/bad",
    }
    assert main(stream_local.COMMAND, argv(**flags, dry_run=True)) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^label +millrace_pipeline=stream_local$", printed, re.MULTILINE)
    assert re.search(r"^step +ScoreStream/Score$", printed, re.MULTILINE)
    # A stream has no staged files.
    assert not re.search(r"^staging *$", printed, re.MULTILINE)
