"""The socket that a server listens on, opened before torch is imported and the model loaded."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import resource
import socket
import struct
import sys

from common.errors import ServerError

# The open files that a process needs besides its connections, such as the model and libraries.
_OTHER_FILES = 256
# A socket option of Linux, for which Python has no name.
_SO_ATTACH_FILTER = 26


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        host: The host name, IPv4 or IPv6 address.
        port: The port; 0 picks a free one.

    Raises:
        ServerError: If the port is in use, or the server cannot listen on this address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"port {port} of {host} is in use: stop the process that uses it, or choose "
                "another --port (0 picks a free one)"
            ) from None
        raise ServerError(
            f"cannot listen on port {port} of {host}: {error.strerror}; check --host and --port"
        ) from None


def allow_connections(wanted: int) -> int:
    """Raise the process' limit of open files for a number of connections.

    Args:
        wanted: The number of connections that the server should accept.

    Returns:
        The number of connections that the limit allows, at most `wanted`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, most - _OTHER_FILES)


class _Instruction(ctypes.Structure):
    """One instruction of a socket filter. Source: linux/filter.h."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


def refuse_connections(listener: socket.socket) -> None:
    """Make a listening socket ignore new connections; connections in its queue are still accepted.

    Closing the socket would reset connections that are not accepted yet. Call this function a
    moment before: it drops the first packet of new connections, which the client sends again a
    second later, when the closed socket refuses it. Does nothing on systems without such a filter.
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
