"""Servers on this machine that stand in for Google Cloud, for tests, demos and benchmarks.

`make emulators` installs two of them under .emulators: local-bigquery (REST, and gRPC of the
Storage Read and Write APIs) and gcp-storage-emulator. Google's own emulator of Pub/Sub is part of
the Google Cloud CLI and needs Java. `bigquery_emulator.py`, `pubsub_labels.py` and
`storage_emulator.py` correct some differences from Google's services. The servers listen on free
ports of the loopback interface, and stop at the end of the block that started them. To start them
by hand:

python -m examples.local_cloud
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.endpoints import VARIABLES, Endpoints
from cloud.proxies import spare_loopback
from common.command_line import CommandParser, parse_or_exit

if TYPE_CHECKING:
    from cloud.clients import Cloud

INSTALLED = Path(__file__).parent.parent / ".emulators"
INSTALL_COMMAND = "make emulators"
PUBSUB_COMMAND = "apt install google-cloud-cli-pubsub-emulator"
PROJECT = "millrace-test"


def is_installed() -> bool:
    """Return whether `make emulators` has been run."""
    return (INSTALLED / ".installed").exists()


@functools.cache
def pubsub_jar() -> Path | None:
    """Return the Pub/Sub emulator of the Google Cloud CLI, or None if it is not installed."""
    if not (shutil.which("gcloud") and shutil.which("java")):
        return None
    command = ["gcloud", "info", "--format=value(installation.sdk_root)"]
    root = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    found = Path(root).glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar")
    return next(iter(sorted(found)), None)


class Server:
    """A server process, which keeps its port when it is started again.

    Args:
        command: The command line; its program may be one of .emulators.
        ready: A URL that answers once the server is ready.
        log: The file to which the output of the process is appended.
        environment: Further environment variables of the process.
    """

    def __init__(self, command: str, ready: str, log: Path, environment: Mapping[str, str]) -> None:
        program, *rest = command.split()
        installed = INSTALLED / "bin" / program
        self._arguments = [str(installed) if installed.exists() else program, *rest]
        self._ready, self._log = ready, log
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 60.0) -> None:
        """Start the process, and wait until it answers.

        Args:
            seconds: How long to wait.

        Raises:
            RuntimeError: If the process exits or does not answer in time; contains its log.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments, stdout=log, stderr=log, env=self._environment
            )
        deadline = time.monotonic() + seconds
        while not _answers(self._ready):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(
                    f"{self._arguments[0]} did not start: {self._log.read_text()[-2000:]}"
                )
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop the process; kill it if it does not stop within 10 seconds."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return this many different free ports of the loopback interface.

    They lie outside the range from which the system assigns ports to outgoing connections.
    """
    found: list[int] = []
    # Tests seed the global generator, and would look for the same ports at the same time.
    chance = random.SystemRandom()
    with ExitStack() as held:
        while len(found) < count:
            probe, port = held.enter_context(socket.socket()), chance.randrange(15_000, 32_000)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def free_port() -> int:
    """Return a free port of the loopback interface."""
    return free_ports(1)[0]


@dataclass(frozen=True)
class LocalCloud:
    """The running servers and their addresses.

    Attributes:
        endpoints: The addresses of the servers.
        bigquery: The stand-in for BigQuery.
        storage: The stand-in for Cloud Storage.
        pubsub: The stand-in for Pub/Sub, or None if it was not started.
    """

    endpoints: Endpoints
    bigquery: Server
    storage: Server
    pubsub: Server | None

    @property
    def cloud(self) -> Cloud:
        """A connection to the servers, for the transforms; it retries for 20 seconds."""
        from cloud.clients import Cloud

        return Cloud(PROJECT, self.endpoints, retry_seconds=20.0)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which a process finds the servers."""
        addresses = {v: getattr(self.endpoints, name) for name, v in VARIABLES.items()}
        return {variable: address for variable, address in addresses.items() if address}

    def environ(self) -> dict[str, str]:
        """Return the environment of this process with these variables, for a child process."""
        return {**os.environ, **self.environment}


def _servers(
    folder: Path, messages: int, pubsub_memory: str, *, gcs: int, rest: int, grpc: int
) -> tuple[Server, Server, Server]:
    """Return the servers of Pub/Sub, Cloud Storage and BigQuery, which are not started yet."""
    pubsub = Server(
        f"java -Xmx{pubsub_memory} -jar {pubsub_jar()} --host=localhost --port={messages}",
        f"http://localhost:{messages}/",
        folder / "pubsub.log",
        {},
    )
    storage = Server(
        f"python {Path(__file__).with_name('storage_emulator.py')} start --host localhost "
        f"--port {gcs} --in-memory",
        f"http://localhost:{gcs}/storage/v1/b",
        folder / "storage.log",
        {},
    )
    bigquery = Server(
        f"python {Path(__file__).with_name('bigquery_emulator.py')} serve --host 127.0.0.1 "
        f"--port {rest} --grpc-port {grpc} --project {PROJECT} --data-dir {folder / 'bigquery'}",
        f"http://127.0.0.1:{rest}/bigquery/v2/projects/{PROJECT}/datasets",
        folder / "bigquery.log",
        # DuckDB looks for its extensions in the home folder.
        {"HOME": str(INSTALLED / "home"), "STORAGE_EMULATOR_HOST": f"http://localhost:{gcs}"},
    )
    return pubsub, storage, bigquery


@contextmanager
def local_cloud(
    folder: Path,
    *,
    with_pubsub: bool = False,
    pubsub_memory: str = "512m",
    with_labels: bool = True,
) -> Iterator[LocalCloud]:
    """Run the servers until the block ends.

    Args:
        folder: The folder for data and logs.
        with_pubsub: Whether to start the emulator of Pub/Sub too.
        pubsub_memory: The memory of the Pub/Sub emulator, in Java's notation. It must hold all
            messages, since the emulator keeps acknowledged ones.
        with_labels: Whether topics and subscriptions keep their labels. Each call to Pub/Sub then
            goes through a proxy.

    Raises:
        RuntimeError: If a server does not start.
    """
    spare_loopback()
    rest, grpc, gcs, messages, front = free_ports(5)
    kept = front if with_labels else messages
    endpoints = Endpoints(
        bigquery=f"http://127.0.0.1:{rest}",
        bigquerystorage=f"127.0.0.1:{grpc}",
        storage=f"http://localhost:{gcs}",
        pubsub=f"localhost:{kept}" if with_pubsub else None,
    )
    pubsub, storage, bigquery = _servers(
        folder, messages, pubsub_memory, gcs=gcs, rest=rest, grpc=grpc
    )
    with ExitStack() as started:
        for server in (storage, bigquery, *([pubsub] if with_pubsub else [])):
            server.start()
            started.callback(server.stop)
        if with_pubsub and with_labels:
            from examples.pubsub_labels import keeping_labels

            started.enter_context(keeping_labels(f"localhost:{messages}", front))
        yield LocalCloud(endpoints, bigquery, storage, pubsub if with_pubsub else None)


def main(argv: Sequence[str]) -> None:
    """Start all installed servers, print the variables that name them, and run until Ctrl-C."""
    parser = CommandParser(
        "examples.local_cloud",
        "Run servers that stand in for Google Cloud until Ctrl-C, and print the "
        "variables with which commands in other terminals use them.",
    )
    parse_or_exit(parser, argv)
    if not is_installed():
        raise SystemExit(
            f"error: the emulators are missing; run in a checkout of the source: {INSTALL_COMMAND}"
        )
    with_pubsub = pubsub_jar() is not None
    if not with_pubsub:
        print(f"# without Pub/Sub, since its emulator is not installed: {PUBSUB_COMMAND}")
    # Without this handler, SIGTERM would end this process and leave the servers running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory() as folder,
        local_cloud(Path(folder), with_pubsub=with_pubsub) as servers,
    ):
        for variable, address in servers.environment.items():
            print(f"export {variable}={address}")
        print(f"# project {PROJECT}; Ctrl-C stops the servers and deletes their data", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
