"""The body of a request: received and decompressed within the limit of its size."""

from __future__ import annotations

from starlette.types import Receive, Scope

from common.compression import TooLarge, compression_of, decompress
from serving.refusals import Disconnected, Refusal


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the content of a request's body.

    Args:
        scope: The scope of the request.
        receive: The function that receives the body.
        limit: The largest size in bytes, both compressed and decompressed.

    Raises:
        Refusal: The body is too large, or has an encoding other than gzip.
        Disconnected: The client left.
    """
    return _decompressed(scope, await _receive(scope, receive, limit), limit)


async def _receive(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the body of a request, of at most `limit` bytes.

    Raises Refusal as soon as the body exceeds the limit, and Disconnected if the client leaves.
    """
    too_large = Refusal(
        413,
        f"the request has more than {limit:,} bytes: send fewer instances",
        headers={"Connection": "close"},
    )
    declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
    if int(declared) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body + chunk) if body else chunk
        body += chunk


def _decompressed(scope: Scope, body: bytes, limit: int) -> bytes:
    """Return the content of a body. Raises Refusal unless its encoding is gzip, or it has none."""
    encoding = b",".join(value for name, value in scope["headers"] if name == b"content-encoding")
    compression = compression_of(encoding.decode("latin-1"))
    if compression not in ("identity", "gzip"):
        shown = encoding[:40].decode("latin-1")
        message = f"Content-Encoding is {shown!r}: expected gzip, or a body that is not compressed"
        raise Refusal(415, message, headers={"Accept-Encoding": "gzip"})
    try:
        return decompress(body, compression, limit)
    except TooLarge:
        message = (
            f"the request has more than {limit:,} bytes when decompressed: send fewer instances"
        )
        raise Refusal(413, message) from None
    except ValueError as error:
        message = f"Content-Encoding is gzip, but the body cannot be decompressed: {error}"
        raise Refusal(400, message) from None
