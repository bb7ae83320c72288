"""Seconds of steps: of one that is waited for, and of many in a row, as in a training."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def waited_for(step: Callable[[], Result], device: torch.device) -> tuple[float, float, Result]:
    """Seconds of one step from an idle device to an idle device, those until the host has launched it; its result."""
    synchronize(device)
    start = time.perf_counter()
    result = step()
    launched = time.perf_counter() - start
    synchronize(device)
    return time.perf_counter() - start, launched, result


def in_a_row(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds of one of so many steps that nobody waits for in between; on CUDA by the device's own clock."""
    synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        return (time.perf_counter() - start) / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / steps


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, as allocators for training do: page faults would add up to a tenth of noise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
