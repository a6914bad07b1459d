"""The Dockerfile copies everything that the wheel needs, and starts the server."""

import json
import re
from pathlib import Path

from source_tree import shipped_packages

from serving.settings import parse_settings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "serving" / "Dockerfile").read_text()


def test_every_package_is_copied_and_not_ignored() -> None:
    packages = set(shipped_packages())
    copied = re.findall(r"^COPY (\w+)/ \1/$", DOCKERFILE, re.MULTILINE)
    assert set(copied) == packages
    own_code = re.findall(r"^COPY (templates/\w+) ", DOCKERFILE, re.MULTILINE)
    assert own_code == ["templates/extra"]
    files = re.findall(r"^COPY ([\w. ]+) (?:\./|/tmp/)$", DOCKERFILE, re.MULTILINE)
    ignore = (ROOT / "serving" / "Dockerfile.dockerignore").read_text().split()
    assert {line[1:] for line in ignore if line.startswith("!")} == packages.union(
        own_code, *(line.split() for line in files)
    )
    assert all((ROOT / name).exists() for line in files for name in line.split())


def test_the_entrypoint_starts_the_server_on_all_addresses_and_not_as_root() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    command = json.loads(entry)
    assert command[:3] == ["python", "-m", "serving"]
    settings = parse_settings(command[3:], {"AIP_STORAGE_URI": "gs://bucket/model"})
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert re.search(r"^USER 1000$", DOCKERFILE, re.MULTILINE)
