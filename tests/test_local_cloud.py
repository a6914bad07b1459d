"""The stand-ins for Google Cloud, started as a command."""

import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from stand_ins import need_emulators

from examples.local_cloud import PROJECT, LocalCloud

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_the_addresses_and_runs_until_a_signal(number: signal.Signals) -> None:
    need_emulators()
    command = [sys.executable, "-m", "examples.local_cloud"]
    found: dict[str, str] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("export "):
                variable, _, address = line.removeprefix("export ").strip().partition("=")
                found[variable] = address
            elif PROJECT in line:
                break
        url = f"{found['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/projects/{PROJECT}/datasets"
        assert urlopen(url).status == 200
        running.send_signal(number)
        assert running.wait() == 0
    assert {"BIGQUERY_STORAGE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"} <= found.keys()
    with pytest.raises(URLError):
        urlopen(url)


def test_the_storage_server_lists_objects_in_pages(emulators: LocalCloud, tmp_path: Path) -> None:
    client = emulators.cloud.storage()
    names = [f"{tmp_path.name}/{name}" for name in ("a", "b", "c/d", "ü")]
    for name in names:
        client.bucket("bucket").blob(name).upload_from_string(b"x")
    found = client.list_blobs("bucket", prefix=f"{tmp_path.name}/", page_size=2)
    assert [[blob.name for blob in page] for page in found.pages] == [names[:2], names[2:]]
