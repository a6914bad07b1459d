"""The limits of a device: how fast it copies and multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

# Each figure is the best of several rounds, because a limit is what the device can do.
ROUNDS = 5


@dataclass(frozen=True)
class Sizes:
    """How much is copied and multiplied: bytes over the bus, bytes on the device, matrix rows."""

    bus: int = 256 << 20
    device: int = 2 << 30
    matrix: int = 8192


SMALL = Sizes(1 << 20, 1 << 20, 256)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(device: torch.device, run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the shortest time of some work on a device, after a first round."""
    run()
    synchronize(device)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def bandwidths(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Return the GB/s of copies to, from and on a device; a copy on it reads and writes."""
    there = torch.empty(sizes.bus, dtype=torch.uint8, device=device)
    found = {}
    for kind in ("pageable", "pinned") if device.type == "cuda" else ("pageable",):
        here = torch.ones(sizes.bus, dtype=torch.uint8, pin_memory=kind == "pinned")
        to = best_seconds(device, partial(there.copy_, here, non_blocking=True))
        back = best_seconds(device, partial(here.copy_, there, non_blocking=True))
        found[f"to_device_{kind}"] = sizes.bus / to / 1e9
        found[f"from_device_{kind}"] = sizes.bus / back / 1e9
    one, other = (torch.ones(sizes.device, dtype=torch.uint8, device=device) for _ in range(2))
    found["on_device"] = 2 * sizes.device / best_seconds(device, lambda: one.copy_(other)) / 1e9
    return {name: round(value, 2) for name, value in found.items()}


def multiplications(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Return the TFLOP/s of square matrix products in each precision."""
    found, n = {}, sizes.matrix
    for name, dtype, way in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
        ("fp16", torch.float16, "highest"),
    ):
        torch.set_float32_matmul_precision(way)
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * n**3 / best_seconds(device, partial(torch.matmul, a, b)) / 1e12
    torch.set_float32_matmul_precision("highest")
    return {name: round(value, 3) for name, value in found.items()}
