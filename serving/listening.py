"""The address that a server listens on; taken before torch is imported and a model loaded."""

from __future__ import annotations

import errno
import socket

from model_handlers.errors import MillraceError


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
