"""A network of its own for workers, as on another machine. It needs root and the command `ip`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

# Passes connections to a port of this machine on to another one, as `ssh -N -R` does.
FORWARDER = """
import asyncio, sys

async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def serve(reader, writer):
    to_reader, to_writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

async def main():
    server = await asyncio.start_server(serve, "localhost", int(sys.argv[2]))
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Network:
    """A network namespace that reaches this machine under one address.

    Attributes:
        name: The name of the namespace.
        own: Its address.
        outside: The address of this machine there.
    """

    name: str
    own: str
    outside: str

    @property
    def inside(self) -> tuple[str, ...]:
        """The words before a command that runs in the network."""
        return ("ip", "netns", "exec", self.name)

    @contextmanager
    def forwarding(self, port: int) -> Iterator[None]:
        """Forward a port of the network's localhost to this machine while the block runs."""
        command = [*self.inside, sys.executable, "-c", FORWARDER, self.outside, str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as forwarder:
            try:
                yield
            finally:
                forwarder.kill()


@contextmanager
def worker_network() -> Iterator[Network]:
    """Make a network. Skip the test if this machine does not allow it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip")
    number = os.getpid() % 250
    name, subnet = f"millrace{number}", f"10.213.{number}"
    if _ip(f"netns add {name}"):
        pytest.skip("this machine does not allow network namespaces")
    try:
        for words in (
            f"link add mrh{number} type veth peer name mrw{number} netns {name}",
            f"addr add {subnet}.1/30 dev mrh{number}",
            f"link set mrh{number} up",
            f"-n {name} addr add {subnet}.2/30 dev mrw{number}",
            f"-n {name} link set mrw{number} up",
            f"-n {name} link set lo up",
        ):
            assert not (error := _ip(words)), error
        yield Network(name, f"{subnet}.2", f"{subnet}.1")
    finally:
        _ip(f"netns del {name}")


def _ip(words: str) -> str:
    """Run the command `ip`, and return its error or nothing."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""
