"""templates/launch.py, run by path from another folder, as the launcher of a Flex Template does."""

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from examples.local_cloud import PROJECT, LocalCloud
from pipelines.metadata import TEMPLATES

PATH = Path(__file__).parent.parent / "templates" / "launch.py"


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_template_has_its_pipeline(launch: ModuleType) -> None:
    assert {command.name: command for command in TEMPLATES} == launch.COMMANDS
    for name, command in launch.COMMANDS.items():
        assert launch.chosen({"MILLRACE_PIPELINE": name}) is command


def test_empty_fields_of_the_console_count_as_not_given(launch: ModuleType) -> None:
    args = ["--input_table=", "--model=m", "--input_query", "", "--json=", "--labels=a=", "--debug"]
    assert launch.given(args) == ["--model=m", "--labels=a=", "--debug"]


def test_white_space_around_pasted_values_is_dropped(launch: ModuleType) -> None:
    args = ["--temp_location=gs://b/tmp \n", "--input_files", "gs://b/a.csv\n", "--run_id= \n"]
    assert launch.given(args) == ["--temp_location=gs://b/tmp", "--input_files", "gs://b/a.csv"]


def test_switches_of_beam_may_have_a_value(launch: ModuleType) -> None:
    args = ["--enable_streaming_engine=true", "--no_use_public_ips=false", "--compile=true"]
    assert launch.as_switches(args) == ["--enable_streaming_engine", "--compile=true"]
    assert launch.as_switches(["--use_public_ips=False"]) == ["--no_use_public_ips"]
    # Beam itself rejects other values.
    assert launch.as_switches(["--streaming=perhaps"]) == ["--streaming=perhaps"]


# Flags that the launcher and the environment of a Flex Template pass.
SERVICE = [
    "--runner=DataflowRunner",
    "--project=p-123456",
    "--region=us-central1",
    "--job_name=a-job",
    "--service_account_email=worker@p-123456.iam.gserviceaccount.com",
    '--labels={"goog-dataflow-provided-template-name": "x"}',
    "--sdk_container_image=us-docker.pkg.dev/p/r/millrace@sha256:00",
    "--num_workers=2",
    "--max_num_workers=10",
    "--machine_type=n1-standard-4",
    "--subnetwork=regions/us-central1/subnetworks/s",
    "--experiments=use_runner_v2",
    "--enable_streaming_engine=false",
]


@pytest.mark.parametrize("flag", SERVICE)
def test_flags_of_beam_are_kept(launch: ModuleType, flag: str) -> None:
    assert launch.without_the_services([flag]) == ([flag], [])


@pytest.mark.parametrize(
    "flag",
    ["max_workers", "launcher_machine_type", "streamingMode", "additional_user_labels", "foo"],
)
def test_flags_that_only_the_service_knows_are_dropped(launch: ModuleType, flag: str) -> None:
    args = ["--model=m", f"--{flag}=1", f"--{flag}", "2", "--run_id=r"]
    assert launch.without_the_services(args) == (["--model=m", "--run_id=r"], [f"--{flag}"] * 2)


@pytest.mark.parametrize("flag", ["input_file", "inputFiles", "modle", "outptu_table", "batch_row"])
def test_misspelled_flags_are_kept_for_the_pipeline_to_reject(
    launch: ModuleType, flag: str
) -> None:
    assert launch.without_the_services([f"--{flag}=1"]) == ([f"--{flag}=1"], [])


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "MILLRACE_PIPELINE='': expected one of batch_local, batch_vertex, stream_local"),
        ({"MILLRACE_PIPELINE": "stream_locl"}, "did you mean 'stream_local"),
    ],
)
def test_an_image_without_a_pipeline_is_reported(
    launch: ModuleType,
    environ: dict[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch.main([], environ) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_the_program_finds_the_package_as_it_is_built_and_installed(
    distribution: Path, tmp_path: Path
) -> None:
    steps = (
        f"{sys.executable} -m venv --without-pip {tmp_path}/env",
        f"{sys.executable} -m pip --python {tmp_path}/env install --quiet --no-index --no-deps "
        f"--find-links {distribution} millrace",
    )
    for step in steps:
        # Run pip in another folder, because in a checkout it would mistake that for the installed
        # package.
        done = subprocess.run(
            step.split(), capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
    # The other packages are those of this environment. The checkout is not on the path.
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    shutil.copy(PATH, tmp_path)
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", tmp_path / "launch.py", *SERVICE, "--modle=m"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"MILLRACE_PIPELINE": "batch_vertex"},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown flag --modle (did you mean '--model")


@pytest.fixture(scope="module")
def bucket(stream_emulators: LocalCloud, example: Path) -> LocalCloud:
    """The emulators, with the example in the bucket, a subscription and topics."""
    cloud = stream_emulators.cloud
    folder = cloud.storage().bucket("bucket")
    for path in (example / "transactions.parquet", *(example / "model").iterdir()):
        folder.blob(f"launch/{path.relative_to(example)}").upload_from_filename(path)
    place = f"projects/{cloud.project}"
    for topic in ("launch-in", "launch-out", "launch-bad"):
        cloud.publisher().create_topic(name=f"{place}/topics/{topic}")
    cloud.subscriber().create_subscription(
        name=f"{place}/subscriptions/launch", topic=f"{place}/topics/launch-in"
    )
    return stream_emulators


FILES = (
    "--input_files=gs://bucket/launch/transactions.parquet",
    "--output_files=gs://bucket/launch/out",
    "--input_table=",
    "--max_dead_letter_share=",
)
MESSAGES = (
    f"--input_subscription=projects/{PROJECT}/subscriptions/launch",
    f"--output_topic=projects/{PROJECT}/topics/launch-out",
    f"--dead_letter_topic=projects/{PROJECT}/topics/launch-bad",
    "--input_topic=",
    "--file_seconds=",
)
ENDPOINT = ("--endpoint_url=http://endpoint.test", "--skip_endpoint_check=true")


@pytest.mark.parametrize(
    ("pipeline", "flags"),
    [
        ("batch_local", FILES),
        ("batch_vertex", (*FILES, *ENDPOINT)),
        ("stream_local", MESSAGES),
        ("stream_vertex", (*MESSAGES, *ENDPOINT)),
    ],
)
def test_the_program_writes_the_job_and_ends(
    bucket: LocalCloud, tmp_path: Path, pipeline: str, flags: tuple[str, ...]
) -> None:
    job = tmp_path / "job_object"
    args = (
        *SERVICE,
        f"--template_location={job}",
        "--staging_location=gs://bucket/launch/staging",
        "--temp_location=gs://bucket/launch/temp",
        "--launcher_machine_type=e2-standard-2",
        "--no_auth=true",
        "--model=gs://bucket/launch/model",
        "--run_id=launched",
        *flags,
    )
    done = subprocess.run(
        [sys.executable, PATH, *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(PATH.parent.parent),
            "MILLRACE_PIPELINE": pipeline,
            **bucket.environment,
        },
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if not line.startswith("memory: about ")]
    assert line.startswith("warning: --launcher_machine_type: neither the pipeline nor Beam")
    written = json.loads(job.read_text())
    (pool,) = written["environment"]["workerPools"][:1]
    assert written["name"] == "a-job"
    kind = "STREAMING" if pipeline.startswith("stream") else "BATCH"
    assert written["type"] == f"JOB_TYPE_{kind}"
    assert written["labels"]["millrace_pipeline"] == pipeline
    assert written["labels"]["goog-dataflow-provided-template-name"] == "x"
    assert (pool["numWorkers"], pool["machineType"]) == (2, "n1-standard-4")
    assert pool["sdkHarnessContainerImages"][0]["containerImage"].endswith("millrace@sha256:00")
    assert not any("requirements" in package["name"] for package in pool.get("packages", ()))
