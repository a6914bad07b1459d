"""The address that a server listens on; taken before torch is imported and a model loaded."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import resource
import socket
import struct
import sys

from common.errors import MillraceError

# Files of a process that are no connections: the model's, libraries', the loop's.
_OTHER_FILES = 256
# Of Linux; Python has no name for it.
_SO_ATTACH_FILTER = 26


def listen(host: str, port: int) -> socket.socket:
    """An address, port 0 for a free one -> the socket that listens there. Raises MillraceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MillraceError(
                f"port {port} of {host} is in use: end what listens there, or choose another "
                "--port (0 takes a free one)"
            ) from None
        raise MillraceError(
            f"cannot listen on port {port} of {host}: {error.strerror}; check --host and --port"
        ) from None


def allow_connections(wanted: int) -> int:
    """How many connections are wanted -> how many the process may have; raises its limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, most - _OTHER_FILES)


class _Instruction(ctypes.Structure):
    """One of a socket filter. Source: linux/filter.h."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


def refuse_connections(listener: socket.socket) -> None:
    """A listening socket -> it takes no new connection; those that have begun are still accepted.

    A socket that is closed resets the connections that nobody has accepted yet. So their first
    packet is dropped before: a client repeats it a second later, and is refused then. Where the
    system has no such filter nothing happens.
    """
    if sys.platform != "linux":
        return
    program = (_Instruction * 4)(
        _Instruction(0x30, 0, 0, 13),  # load the byte of TCP's flags
        _Instruction(0x45, 0, 1, 0x02),  # is SYN set?
        _Instruction(0x06, 0, 0, 0),  # drop the packet
        _Instruction(0x06, 0, 0, 0xFFFFFFFF),  # keep it
    )
    attached = struct.pack("HP", len(program), ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
