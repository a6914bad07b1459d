"""The devices of this worker that a name stands for."""

from __future__ import annotations

import re

import torch

from common.errors import DeviceError, UsageError


def check_device(device: str) -> str:
    """Return the name of a device. Raise UsageError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return device


def find_devices(device: str) -> tuple[torch.device, ...]:
    """Return the devices of this worker that a checked name stands for, at least one.

    Args:
        device: A name that `check_device` accepts. `cuda` means every GPU that this process sees,
            and `auto` the same, or the CPU if there is none.

    Raises:
        DeviceError: This worker does not have the device.
    """
    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return (torch.device("cpu"),)
    number = device.partition(":")[2]
    found = range(count) if not number else range(int(number), min(int(number) + 1, count))
    if not found:
        raise DeviceError(
            f"device {device} is not available: this worker has {count} CUDA "
            f"device{'' if count == 1 else 's'}; use --device auto or cpu, or workers with a GPU "
            "and its driver"
        )
    return tuple(torch.device("cuda", index) for index in found)
