"""A model that is tried out, and then is as it was, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from .extra_passes import buffers_restored
from .watch import watches_of


@contextmanager
def restored(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[Callable[[], None]]:
    """Undo, at the end, what trying out the model does to it: also after an exception.

    Parameters' values, `.grad`, buffers, train/eval mode of every module, random states (Python's, NumPy's, torch's on
    the CPU and on the model's devices), and what an attached `PerSampleNorms` has measured. Meanwhile that one is
    detached, gradients are None, and hooks that run once a gradient is accumulated, such as an optimizer's, are off.

    Args:
        dtype: what the model's real floating-point parameters and buffers are converted to for the time.

    Yields:
        A function that sets all random states to what they were.
    """
    rewind = random_states({p.device for p in model.parameters()})
    with ExitStack() as stack:
        stack.callback(rewind)
        stack.enter_context(modes_restored(model))
        stack.enter_context(_others_detached(model))
        stack.enter_context(_gradients_restored(model))
        stack.enter_context(_converted(model, dtype))
        stack.enter_context(buffers_restored(model))
        yield rewind


@contextmanager
def randomness_restored() -> Iterator[None]:
    """Whatever happens inside draws random numbers of its own."""
    rewind = random_states([torch.device("cuda", index) for index in range(torch.cuda.device_count())])
    try:
        yield
    finally:
        rewind()


def random_states(devices: Iterable[torch.device] = ()) -> Callable[[], None]:
    """What sets the random states of now again: Python's, NumPy's, and torch's on the CPU and on `devices`."""
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    others = [(d, torch.get_device_module(d).get_rng_state(d)) for d in devices if d.type not in ("cpu", "meta")]

    def rewind() -> None:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        for device, state in others:
            torch.get_device_module(device).set_rng_state(state, device)

    return rewind


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Every module trains or evaluates afterwards as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _others_detached(model: nn.Module) -> Iterator[None]:
    others = watches_of(model)
    for norms in others:
        norms.detach()
    try:
        yield
    finally:
        for norms in others:
            norms.resume()


@contextmanager
def _gradients_restored(model: nn.Module) -> Iterator[None]:
    kept = [(p, p.grad, p._post_accumulate_grad_hooks) for p in model.parameters()]
    off = [(hooks, dict(hooks)) for *_, hooks in kept if hooks]
    try:
        for parameter, *_ in kept:
            parameter.grad = None
        for hooks, _ in off:
            hooks.clear()  # autograd holds on to this very dictionary
        yield
    finally:
        for parameter, gradient, _ in kept:
            parameter.grad = gradient
        for hooks, before in off:
            hooks.update(before)


@contextmanager
def _converted(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    tensors = [] if dtype is None else [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    kept = [(t, t.data) for t in tensors]
    try:
        for tensor, data in kept:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in kept:
            tensor.grad = None  # of the other dtype
            tensor.data = data
