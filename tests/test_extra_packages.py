"""`--extra_packages`: the user's own code in runs, worker processes, servers and jobs."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from command_line import words
from own_code import (
    FAULTS,
    FEATURES,
    ROWS,
    SHA256,
    build_wheel,
    score,
    write_own_package,
    write_wheel,
)
from pubsub_mailbox import Mailbox
from serving_client import Client
from source_tree import shipped_packages
from waiting import wait_until

from common.errors import UsageError
from examples.local_cloud import LocalCloud
from model_handlers.wheels import OWN, importable, read_wheels, refuse_unfit

ROOT = Path(__file__).parents[1]
WHEEL = "myteam-1.0-py3-none-any.whl"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, rows, and a wheel that setuptools built."""
    place = tmp_path_factory.mktemp("own")
    write_own_package(place / "model")
    build_wheel(place)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return place


def environment(**also: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **also}


def run(place: Path, *argv: str, **also: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *argv]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=place, env=environment(**also)
    )


BATCH = [
    *("pipelines.batch_local", "--input_files", "rows.jsonl", "--model", "model"),
    *("--id_column", "id", "--output_format", "jsonl", "--trusted_modules", "myteam"),
]


def assert_results(out: Path) -> None:
    """Assert that the good rows have their scores and decisions, and the bad ones a reason."""
    rows = [json.loads(t) for p in out.glob("scores/*.jsonl") for t in p.read_text().splitlines()]
    assert {row["row_id"] for row in rows} == {"r0", "r2"}
    for row in rows:
        expected = score(next(one for one in ROWS if one["id"] == row["row_id"]))
        assert row["score"] == pytest.approx(expected, rel=1e-6)
        assert row["decision"] == ("stop" if expected > 0 else "go")
    letters = [
        json.loads(t) for p in (out / "dead_letters").iterdir() for t in p.read_text().splitlines()
    ]
    assert {letter["row_id"]: letter["reason"] for letter in letters} == FAULTS
    (raised,) = (letter for letter in letters if letter["reason"] == "function_error")
    assert raised["message"] == "column amount: myteam.features:ratio raised ValueError"


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_a_run_in_this_process_uses_the_wheel(place: Path, tmp_path: Path, mode: str) -> None:
    flags = ["--output_files", str(tmp_path), "--run_id", "r", "--extra_packages", WHEEL]
    workers = ["--direct_running_mode", mode, "--direct_num_workers", "2"]
    done = run(place, *BATCH, *flags, *workers, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_results(tmp_path / "r")
    # The folder with the files of the wheel is gone.
    assert not list(tmp_path.glob("millrace-*"))


def test_a_replay_uses_the_wheel(place: Path, tmp_path: Path) -> None:
    flags = ["--extra_packages", WHEEL, "--run_id", "r", "--output_files", str(tmp_path / "first")]
    assert run(place, *BATCH, *flags).returncode == 0
    letters = str(tmp_path / "first/r/dead_letters")
    argv = ["pipelines.replay", "--input_files", letters, "--model", "model", "--id_column", "id"]
    argv += ["--output_files", str(tmp_path / "again"), "--trusted_modules", "myteam"]
    done = run(place, *argv, "--extra_packages", WHEEL)
    # Both rows are at fault again, so no row is scored.
    assert done.returncode == 1
    assert "2 of 2 rows" in done.stderr


def test_without_the_wheel_one_line_names_the_flag(place: Path, tmp_path: Path) -> None:
    mode = ["--direct_running_mode", "multi_processing"]
    done = run(place, *BATCH, "--output_files", str(tmp_path), *mode)
    assert done.returncode == 1
    *_, line = done.stderr.strip().splitlines()
    assert "cannot be imported here: No module named 'myteam'" in line
    assert "pass its wheel in --extra_packages, or install it" in line


def test_the_module_must_still_be_trusted(place: Path, tmp_path: Path) -> None:
    untrusted = [arg for arg in BATCH if arg not in ("--trusted_modules", "myteam")]
    done = run(place, *untrusted, "--output_files", str(tmp_path), "--extra_packages", WHEEL)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "add --trusted_modules myteam" in line


def test_the_wheel_wins_over_a_module_in_the_working_directory(place: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(place, here)
    (here / "myteam").mkdir()
    (here / "myteam" / "__init__.py").write_text("raise RuntimeError('not the wheel')")
    done = run(here, *BATCH, "--output_files", "o", "--run_id", "r", "--extra_packages", WHEEL)
    assert done.returncode == 0, done.stderr
    assert_results(here / "o/r")


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_a_run_warns_once_if_the_source_changed(tmp_path: Path, mode: str) -> None:
    write_own_package(tmp_path / "model")
    write_wheel(tmp_path, features=FEATURES + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 50))
    flags = ["--output_files", "o", "--run_id", "r", "--extra_packages", WHEEL]
    workers = ["--direct_running_mode", mode, "--direct_num_workers", "2", "--batch_rows", "10"]
    done = run(tmp_path, *BATCH, *flags, *workers)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("warning: function myteam.features:ratio: the source of its module")
    assert f"not {SHA256[:12]}... as when the model was packaged" in line


def test_a_run_warns_if_the_source_cannot_be_read(tmp_path: Path) -> None:
    import py_compile

    write_own_package(tmp_path / "model")
    source = tmp_path / "features.py"
    source.write_text(FEATURES)
    py_compile.compile(str(source), str(tmp_path / "features.pyc"), doraise=True)
    path = write_wheel(tmp_path)
    with zipfile.ZipFile(path) as archive:
        kept = {n: archive.read(n) for n in archive.namelist() if n != "myteam/features.py"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)
        archive.write(tmp_path / "features.pyc", "myteam/features.pyc")
    source.unlink()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = run(tmp_path, *BATCH, "--output_files", "o", "--run_id", "r", "--extra_packages", WHEEL)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "its module has no source file here that can be read" in line
    assert_results(tmp_path / "o/r")


def test_a_function_that_breaks_the_contract_ends_the_run(tmp_path: Path) -> None:
    write_own_package(tmp_path / "model")
    source = "def ratio(amount, limit): return amount[:1]\n\n\n"
    broken = re.sub(r"(?s)def ratio.*?(?=def parts)", source, FEATURES)
    write_wheel(tmp_path, features=broken)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = run(tmp_path, *BATCH, "--output_files", "o", "--extra_packages", WHEEL)
    assert done.returncode == 1
    warning, error = done.stderr.strip().splitlines()
    assert warning.startswith("warning: function myteam.features:ratio: the source")
    assert re.search(r"ratio: expected \d values of float64, .* got 1 values", error)


def test_a_server_uses_the_wheel(place: Path) -> None:
    argv = ["--model_path", "model", "--port", "0", "--trusted_modules", "myteam"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", *argv, "--outputs", "all", "--instance_keys", "id"],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(MILLRACE_EXTRA_PACKAGES=WHEEL),
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        wait_until(lambda: any("serving own" in t for t in lines) or process.poll() is not None)
        assert process.poll() is None, lines
        (url,) = [found[1] for t in lines if (found := re.search(r"http://(\S+)", t))]
        client = Client(url)
        answer = client.predict([ROWS[0], ROWS[2]])
        assert answer.status == 200, answer.body
        got = [prediction["score"] for prediction in answer.json["predictions"]]
        assert got == pytest.approx([score(ROWS[0]), score(ROWS[2])], rel=1e-6)
        refused = client.predict([ROWS[1]])
        assert refused.status == 400
        assert "raised ValueError" in refused.body.decode()
        assert "secret" not in refused.body.decode()
    finally:
        process.terminate()
        process.wait(30)


def test_a_server_without_the_wheel_names_the_flag(place: Path) -> None:
    argv = ["--model_path", "model", "--port", "0", "--trusted_modules", "myteam"]
    done = run(place, "serving", *argv)
    assert done.returncode == 1
    assert "pass its wheel in --extra_packages" in done.stderr.strip().splitlines()[-1]
    done = run(place, "serving", *argv, "--extra_packages", "no.whl")
    assert done.returncode == 2


def test_a_stream_uses_the_wheel(place: Path, stream_emulators: LocalCloud) -> None:
    source, output, letters = (
        Mailbox(stream_emulators.cloud, f"{kind}-{uuid.uuid4().hex[:12]}").create()
        for kind in ("in", "out", "dead")
    )
    source.publish([json.dumps(row).encode() for row in ROWS])
    flags = {
        "input_subscription": source.subscription,
        "output_topic": output.topic,
        "dead_letter_topic": letters.topic,
        "model": "model",
        "trusted_modules": "myteam",
        "extra_packages": WHEEL,
        "stop_after_seconds": 2,
    }
    done = run(place, "pipelines.stream_local", *words(flags), **stream_emulators.environment)
    assert done.returncode == 0, done.stderr
    scores = [json.loads(message.data) for message in output.take(2)]
    expected = [score(row) for row in ROWS if row["id"] not in FAULTS]
    assert sorted(row["score"] for row in scores) == pytest.approx(sorted(expected), rel=1e-6)
    dead = [message.attributes["millrace_reason"] for message in letters.take(2)]
    assert set(dead) == set(FAULTS.values())


@pytest.mark.parametrize("where", ["here", "bucket"])
def test_beam_stages_the_wheel_for_dataflow_beside_a_custom_image(
    place: Path, stream_emulators: LocalCloud, where: str, beam_processes: None
) -> None:
    """The workers of a job install the staged files that extra_packages.txt names."""
    bucket = stream_emulators.cloud.storage().bucket("bucket")
    bucket.blob("own/wheel/" + WHEEL).upload_from_filename(str(place / WHEEL))
    bucket.blob("own/rows.jsonl").upload_from_filename(str(place / "rows.jsonl"))
    for name in ("model.json", "model.pt"):
        bucket.blob(f"own/model/{name}").upload_from_filename(str(place / "model" / name))
    flags = {
        "input_files": "gs://bucket/own/rows.jsonl",
        "output_files": "gs://bucket/own/out",
        "model": "gs://bucket/own/model",
        "trusted_modules": "myteam",
        "extra_packages": WHEEL if where == "here" else f"gs://bucket/own/wheel/{WHEEL}",
        "runner": "DataflowRunner",
        "project": "my-project",
        "region": "us-central1",
        "temp_location": "gs://bucket/own/tmp",
        "staging_location": f"gs://bucket/own/staging/{where}",
        "template_location": f"gs://bucket/own/template-{where}.json",
        "sdk_container_image": "gcr.io/my-project/millrace:1",
        "no_auth": True,
    }
    given = [t for t in words(flags) if t != "True"]
    done = run(place, "pipelines.batch_local", *given, **stream_emulators.environment)
    assert done.returncode == 0, done.stderr
    job = json.loads(bucket.blob(f"own/template-{where}.json").download_as_bytes())
    path = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    proto = beam_runner_api_pb2.Pipeline.FromString(
        bucket.blob(path.removeprefix("gs://bucket/")).download_as_bytes()
    )
    staged = {}
    for ready in proto.components.environments.values():
        assert b"millrace:1" in ready.payload
        for artifact in ready.dependencies:
            role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(
                artifact.role_payload
            )
            url = beam_runner_api_pb2.ArtifactUrlPayload.FromString(artifact.type_payload).url
            staged[role.staged_name] = url.removeprefix("gs://bucket/")
    assert bucket.blob(staged["extra_packages.txt"]).download_as_bytes() == f"{WHEEL}\n".encode()
    assert bucket.blob(staged[WHEEL]).download_as_bytes() == (place / WHEEL).read_bytes()


def test_a_wheel_for_a_template_must_be_in_a_bucket(place: Path) -> None:
    flags = ["--template", "gs://bucket/t.json", "--extra_packages", WHEEL]
    done = run(place, "pipelines.launch", "batch_local", *flags)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"--extra_packages {WHEEL}: the launcher of a template cannot reach" in line


BAD = [
    ("gone-1.0-py3-none-any.whl", None, "does not exist"),
    ("myteam-1.0.tar.gz", b"", "expected a wheel (.whl): build one with"),
    ("myteam.whl", b"", "do not rename wheels"),
    (WHEEL, b"no zip", "is not a wheel: File is not a zip file"),
]


@pytest.mark.parametrize(("name", "data", "expected"), BAD)
def test_what_is_not_a_wheel_is_refused(
    tmp_path: Path, name: str, data: bytes | None, expected: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=f"^--extra_packages {re.escape(str(path))}") as raised:
        read_wheels([str(path)])
    assert expected in str(raised.value)


def test_a_zip_file_without_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("myteam.py", "")
    with pytest.raises(UsageError, match="has no file WHEEL"):
        read_wheels([str(path)])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("transforms/x.py", "the name of a module of Millrace"),
        ("json/__init__.py", "the name of a module of Python"),
        ("numpy/__init__.py", "another package that is installed here"),
        ("six.py", "another package that is installed here"),
    ],
)
def test_a_module_with_the_name_of_another_one_is_refused(
    tmp_path: Path, module: str, expected: str
) -> None:
    path = write_wheel(tmp_path, {module: ""})
    with pytest.raises(UsageError, match=expected):
        read_wheels([str(path)])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("sitecustomize.py", "Python would run its sitecustomize.py at each start"),
        ("usercustomize/__init__.py", "Python would run its usercustomize/__init__.py"),
        ("ours.pth", "Python would run its ours.pth"),
        ("ours-1.0.data/purelib/ours.pth", "Python would run its ours.pth"),
        ("../json.py", "has a file outside its folder"),
        ("ours/../../json.py", "has a file outside its folder"),
        ("/tmp/ours.py", "has a file outside its folder"),
    ],
)
def test_files_that_python_would_run_by_itself_are_refused(
    tmp_path: Path, file: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        read_wheels([str(write_wheel(tmp_path, {"ours/__init__.py": "", file: ""}))])


def test_the_plugins_of_a_wheel_are_not_found(tmp_path: Path) -> None:
    plugins = "[torch.backends]\nours = ours:start\n"
    files = {"ours/__init__.py": "", "ours-1.0.dist-info/entry_points.txt": plugins}
    with importable(read_wheels([str(write_wheel(tmp_path, files, name="ours"))])):
        assert metadata.distribution("ours").version == "1.0"
        assert not metadata.distribution("ours").entry_points


def test_two_wheels_must_not_have_the_same_module(tmp_path: Path) -> None:
    first = write_wheel(tmp_path, {"ours/__init__.py": ""}, name="first")
    second = write_wheel(tmp_path, {"ours/__init__.py": ""}, name="second")
    with pytest.raises(UsageError, match=r"of a module of first-1\.0-py3-none-any\.whl: rename it"):
        read_wheels([str(first), str(second)])
    # Folders without __init__.py share a name.
    first = write_wheel(tmp_path, {"ours/a.py": ""}, name="first")
    second = write_wheel(tmp_path, {"ours/b.py": ""}, name="second")
    assert len(read_wheels([str(first), str(second)])) == 2


def test_a_wheel_may_replace_the_installed_package_of_its_name(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, {"numpy/__init__.py": ""}, name="numpy")
    assert read_wheels([str(path)])[0].modules == {"numpy": True}


def test_millrace_itself_belongs_to_another_flag(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, {"x.py": ""}, name="millrace")
    with pytest.raises(UsageError, match=r"is Millrace itself.*--extra_package$"):
        read_wheels([str(path)])
    assert set(shipped_packages()) == OWN


def test_a_wheel_for_another_machine_is_refused_where_it_must_run(tmp_path: Path) -> None:
    wheels = read_wheels([str(write_wheel(tmp_path, tag="cp27-cp27m-win32"))])
    with pytest.raises(UsageError, match="the wheel is for cp27-cp27m-win32, and this is Python 3"):
        refuse_unfit(wheels)


def test_a_wheel_is_importable_only_in_the_block(tmp_path: Path) -> None:
    files = {
        "ours_of_test/__init__.py": "",
        "w-1.0.data/purelib/ours_of_test/deep.py": "VALUE = 7",
        "w-1.0.data/scripts/tool": "",
    }
    wheels = read_wheels([str(write_wheel(tmp_path, files, name="w"))])
    path, variable = list(sys.path), os.environ.get("PYTHONPATH")
    with importable(wheels):
        from ours_of_test.deep import VALUE  # type: ignore[import-not-found]

        assert VALUE == 7
        (folder,) = set(sys.path) - set(path)
        assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == folder
        assert not list(Path(folder).glob("*.data"))
    assert (sys.path, os.environ.get("PYTHONPATH")) == (path, variable)
    assert not Path(folder).exists()
    for name in ("ours_of_test", "ours_of_test.deep"):
        sys.modules.pop(name)
