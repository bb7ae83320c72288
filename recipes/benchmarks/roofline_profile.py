"""What a training step took, by stage and kind: torch's profiler, its events told apart by `roofline_stages.py`.

On CUDA it is the time of kernels, each found by the call that launched it; on a CPU the operators' own time.
"""

from __future__ import annotations

import copy
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from roofline_stages import INPUT, OPTIMIZER, OTHER, REST, WEIGHT, Stages, kind_of
from timing import in_a_row, waited_for
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hf_clars import CLARS, PerSampleNorms

GRADIENTS = "gradients"  # of a convolution, where it cannot be told which of the two a kernel formed
Cell = tuple[str, str]
Step = Callable[[nn.Module, Tensor, Tensor], Any]  # forward and backward


@dataclass
class Trial:
    """A training of its own copy of a model, and what was measured of it.

    Attributes:
        seconds: of steps in a row; launched: until the host has launched a step.
        peak: bytes of a step above those before it; None on a CPU.
        cells: (stage, kind) → seconds of one step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward: nn.Module | Callable[..., Any]
    pass_: Step
    x: Tensor
    y: Tensor
    seconds: list[float] = field(default_factory=list)
    launched: list[float] = field(default_factory=list)
    peak: int | None = None
    cells: dict[Cell, float] = field(default_factory=dict)

    def step(self) -> None:
        self.pass_(self.forward, self.x, self.y)
        self.optimizer.step()
        self.optimizer.zero_grad()


def trials(model: nn.Module, x: Tensor, y: Tensor, pass_: Step, *, compiled: bool) -> dict[str, Trial]:
    """`plain`: fused SGD with Nesterov's momentum; `norms`: CLARS with the exact norms of all layers."""
    made = {}
    for name in ("plain", "norms"):
        own = copy.deepcopy(model)
        optimizer: torch.optim.Optimizer
        if name == "plain":
            optimizer = torch.optim.SGD(own.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
        else:
            optimizer = CLARS(own.parameters(), lr=1e-4, norms=PerSampleNorms(own, vectors=False))
        made[name] = Trial(own, optimizer, torch.compile(own) if compiled else own, pass_, x, y)
    return made


def measure(both: dict[str, Trial], *, steps: int, rounds: int, compiled: bool) -> None:
    """Fill in what the trials have room for: interleaved rounds of `steps` in a row, then one step in the profiler."""
    device = next(iter(both.values())).x.device
    for trial in both.values():
        trial.step()  # compiles, tunes, makes the optimizer's state
        trial.step()
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            trial.step()
            trial.peak = torch.cuda.max_memory_allocated(device) - before
    for _ in range(rounds):
        for trial in random.sample(list(both.values()), len(both)):
            trial.launched.append(waited_for(trial.step, device)[1])
            trial.seconds.append(in_a_row(trial.step, steps, device))
    for trial in both.values():
        trial.cells = profiled(trial, device, compiled)


def profiled(trial: Trial, device: torch.device, compiled: bool) -> dict[Cell, float]:
    """(stage, kind) → seconds of one step; of a compiled model all is the stage "rest"."""
    stages = Stages(trial.model)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    watching = nullcontext() if compiled else stages.watching()  # new hooks would make it compile anew
    # `acc_events` changes nothing where there is one cycle; without it some versions warn that there could be more.
    with watching, profile(activities=activities, record_shapes=True, acc_events=True) as seen:
        waited_for(trial.step, device)
    return by_cell(seen.events(), stages, device.type == "cuda")


def by_cell(events: Iterable[Any], stages: Stages, cuda: bool) -> dict[Cell, float]:
    """Seconds by stage and kind of what the profiler saw; every kernel counts once, wherever it came from."""
    events = list(events)
    calls = [event for event in events if event.device_type == DeviceType.CPU]
    ranges = {call.name for call in calls}  # of the host, which the profiler draws on the device, too
    kernels = [event for event in events if event.device_type != DeviceType.CPU and event.name not in ranges]
    calls.sort(key=lambda e: (e.time_range.start, -e.time_range.end))
    chains = _chains(calls)
    cells: defaultdict[Cell, float] = defaultdict(float)
    if cuda:
        launches = {e.id: chain for e, chain in zip(calls, chains, strict=True) if _is_launch(e.name)}
        work = [(launches.get(k.id, []), k.name, k.time_range.elapsed_us()) for k in kernels]
    else:
        work = [(chain, "", own) for chain, own in zip(chains, _own_times(calls, chains), strict=True)]
    order = _order(work) if cuda else work
    previous = REST
    told = _sides_of_convolutions(order)
    for (chain, _, duration), side in zip(order, told, strict=True):
        stage, kind = _place(chain, stages, previous)
        previous = stage
        cells[stage, side if side and kind == INPUT else kind] += duration / 1e6
    return dict(cells)


Call = Any  # an event of the profiler on the host
Work = tuple[list[Call], str, float]  # calls from the inside out, name of the kernel, microseconds


def _chains(calls: list[Call]) -> list[list[Call]]:
    """Each call and those within which it was made, from the inside out; whoever waits for a thread is around it."""
    chains, open_calls = [], []
    for call in calls:
        while open_calls and open_calls[-1].time_range.end <= call.time_range.start:
            open_calls.pop()
        open_calls.append(call)
        chains.append(open_calls[::-1])
    return chains


def _own_times(calls: list[Call], chains: list[list[Call]]) -> list[float]:
    own = {id(call): call.time_range.elapsed_us() for call in calls}
    for chain in chains:
        if len(chain) > 1:
            own[id(chain[1])] -= chain[0].time_range.elapsed_us()
    return [max(0.0, own[id(call)]) for call in calls]


def _order(work: list[Work]) -> list[Work]:
    return sorted(work, key=lambda w: w[0][0].time_range.start if w[0] else float("inf"))


def _place(chain: list[Call], stages: Stages, previous: str) -> Cell:
    names = [call.name for call in chain]
    if any(name.startswith("Optimizer.step") for name in names):
        return OPTIMIZER, OTHER
    engine = next((call for call in chain if call.name.startswith("autograd::engine::evaluate_function")), None)
    if engine is not None:
        numbers = [engine.sequence_nr]
    else:
        numbers = [call.sequence_nr for call in chain if call.sequence_nr >= 0][:1]
    if engine is not None and engine.sequence_nr < 0:  # a gradient is accumulated, behind what formed it
        return previous, OTHER
    module = stages.module_at(numbers[0]) if numbers else ""
    if any("TapBackward" in name or name.startswith("hf_clars::") for name in names):
        return stages.of(module), WEIGHT
    product = next((call for call in chain if call.name == "aten::mm"), None)
    shapes = product.input_shapes if product is not None else None
    result = (shapes[0][0], shapes[1][1]) if shapes and len(shapes[0]) == len(shapes[1]) == 2 else ()
    return stages.of(module), kind_of(names, engine is not None, stages.weights(module), result)


def _sides_of_convolutions(work: list[Work]) -> list[str]:
    """For kernels of a convolution's backward pass, which gradient they form; "" for all others.

    cuDNN's kernels have it in their names, and torch asks for the input's gradient first;
    what only rearranges does not.
    """
    sides = [""] * len(work)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, (chain, _, _) in enumerate(work):
        outermost = [call for call in chain if call.name == "aten::convolution_backward"]
        if outermost:
            groups[id(outermost[-1])].append(index)
    for group in groups.values():
        named = [INPUT if "dgrad" in (n := work[i][1].lower()) else WEIGHT if "wgrad" in n else "" for i in group]
        last_input = max((p for p, side in enumerate(named) if side == INPUT), default=-1)
        for p, index in enumerate(group):
            after = WEIGHT if WEIGHT in named else GRADIENTS
            sides[index] = named[p] or (INPUT if p < last_input else after)
    return sides


def _is_launch(name: str) -> bool:
    return name.startswith(("cuda", "cu", "hip"))


def summary(trial: Trial, batch_size: int) -> dict[str, float | None]:
    seconds = statistics.median(trial.seconds)
    return {
        "seconds": seconds,
        "images_per_second": batch_size / seconds,
        "launched_seconds": statistics.median(trial.launched),
        "profiled_seconds": sum(trial.cells.values()),
        "peak_bytes": trial.peak,
    }
