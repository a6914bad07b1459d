"""Damage to the bytes of messages, and their compression."""

from __future__ import annotations

import gzip
import random
import zlib

TOKENS = [b"null", b"NaN", b"1e999", b'"', b"{", b"]", b",", b"\xff", b"\\ud800", b"\0", b"9" * 40]


def mutated(rng: random.Random, body: bytes) -> bytes:
    """Return a message with a part cut out or doubled, or with other bytes in it."""
    at, until = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    between = rng.choice([b"", rng.choice(TOKENS), rng.randbytes(3), body[at:until] * 2])
    return body[:at] + between + body[rng.choice([at, until]) :]


def packed(rng: random.Random, body: bytes) -> tuple[str, str, bytes]:
    """Return the name of what is done, the value of Content-Encoding, and the compressed bytes."""
    encoding = rng.choice(["gzip", "GZIP", "x-gzip", " Gzip ", "deflate", "Deflate", "identity"])
    middle = rng.randrange(len(body) + 1)
    if "gzip" in encoding.lower():
        parts = rng.choice([[body], [body[:middle], body[middle:]]])
        zipped = b"".join(gzip.compress(part, 1, mtime=0) for part in parts)
        zipped += b"\0" * rng.choice([0, 0, 9])
    elif encoding == "identity":
        zipped = body
    else:
        # Without the header and the checksum of zlib, as some senders understand deflate.
        zipped = zlib.compress(body)[2:-4] if rng.random() < 0.5 else zlib.compress(body)
    damage = rng.choice(["", "", " cut", " mutated", " not at all", " unknown"])
    if damage == " unknown":
        return f"compressed{damage}", rng.choice(["br", "zstd", "gzip, gzip", "none"]), zipped
    if damage in (" cut", " mutated") and zipped:
        zipped = zipped[: rng.randrange(len(zipped))] if damage == " cut" else mutated(rng, zipped)
    return f"compressed{damage}", encoding, body if damage == " not at all" else zipped
