"""Seconds of steps: of one that is waited for, and of many in a row, as in a training; and how they are compared.

Everything that is compared takes turns, in random order, and what counts is the median of the ratios within a round:
what else the machine does then cancels.
"""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")


def interleaved(measures: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """What each measure found in each round."""
    found: dict[str, list[Result]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name in random.sample(list(measures), len(measures)):
            found[name].append(measures[name]())
    return found


def ratio(seconds: Sequence[float], to: Sequence[float]) -> float:
    """Median over rounds."""
    return statistics.median(a / b for a, b in zip(seconds, to, strict=True))


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


def in_a_row(step: Callable[[], object], steps: int) -> float:
    """Seconds of one of so many steps that nobody waits for in between."""
    from torch.utils.benchmark import Timer  # which looks for a CUDA compiler, and says so where there is no GPU

    # Python's garbage is collected as in a training, which timeit would put off.
    timer = Timer("step()", "gc.enable()", globals={"step": step, "gc": gc}, num_threads=torch.get_num_threads())
    return timer.timeit(steps).mean


def peak_bytes(step: Callable[[], object], device: torch.device) -> tuple[int, dict[str, float]]:
    """Bytes of a step's peak above what was allocated before it; on a CPU also operator → milliseconds of its own."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before, {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak, {e.key: e.self_cpu_time_total / 1e3 for e in profile.key_averages()}


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, as allocators for training do: page faults would add up to a tenth of noise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
