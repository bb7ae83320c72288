"""Measuring as one opaque operator, so that torch.compile traces a measured model from end to end.

A compiled backward pass calls the operator with what the eager one would look up: numbers that lead to the recorder,
the sampler and the parameters. What it does is what the eager pass does, Python and all; its second result only keeps
the compiler from dropping a call whose gradient nobody wants.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, library
from torch.fx.experimental.symbolic_shapes import guard_scalar

from .dynamo import show_to_modes
from .measuring import measure
from .recorded_calls import Recipe
from .recorder import Recorder
from .sample_axis.axis import SampleAxis
from .sample_axis.call import name_of
from .samplers.function import FunctionSampler
from .tracked import TrackedTensor
from .uses import Use

show_to_modes()

_recorders: weakref.WeakValueDictionary[int, Recorder] = weakref.WeakValueDictionary()
_uses: list[tuple[Any, ...]] = []


def register(recorder: Recorder) -> None:
    """Let the operator find the recorder by its key."""
    _recorders[recorder.key] = recorder


@torch.compiler.assume_constant_result
def _number_of(*facts: Any) -> int:
    """The number of a use, at trace time: the same facts, the same number."""
    if facts not in _uses:
        _uses.append(facts)
    return _uses.index(facts)


def numbered(use: Use) -> tuple[int, list[int]]:
    """A number for everything about a use that does not change from one pass to the next, and the sizes in it, which
    may: with dynamic shapes the compiler does not know them."""
    sampler = use.sampler
    fields = tuple(getattr(sampler, name) for name in sampler.__dataclass_fields__)
    weight, bias = _facts(use.weight), _facts(use.bias)
    subset = None if use.subset is None else (use.subset.start, use.subset.stop, use.subset.step)
    axis = None if use.axis is None else (use.axis.dim, use.axis.inner)
    # They may be symbols, of which the compiler takes the value here.
    fused, unbatched = [True if fact else False for fact in (use.fused, use.unbatched)]  # noqa: SIM210
    sizes = [use.batch]
    facts = _without_sizes((fields, weight, bias, (fused, unbatched, axis), subset), sizes)
    return _number_of(type(sampler), *facts, use.dtype, use.memory_format), sizes


_SIZE = "a size"


def _without_sizes(facts: Any, sizes: list[int]) -> Any:
    """The same, with its whole numbers moved to the list."""
    if isinstance(facts, tuple):
        return tuple([_without_sizes(fact, sizes) for fact in facts])
    if isinstance(facts, int) and not isinstance(facts, bool):
        sizes.append(facts)
        return _SIZE
    # Of a float that it does not know, such as a layer's eps, the compiler takes the value from here on.
    return guard_scalar(facts) if isinstance(facts, float) else facts


def _with_sizes(facts: Any, sizes: Iterator[int]) -> Any:
    if isinstance(facts, tuple):
        return tuple([_with_sizes(fact, sizes) for fact in facts])
    return next(sizes) if isinstance(facts, str) and facts == _SIZE else facts


def _facts(of: TrackedTensor | None) -> tuple[Any, ...] | None:
    """Indices of the parameters; and of a tensor computed from them the steps and the number of constants."""
    if of is None:
        return None
    made = None if of.recipe is None else (of.recipe.steps, len(of.recipe.constants))
    return tuple([tracked.index for tracked in of.parameters]), made


def constants_of(use: Use) -> tuple[Tensor, ...]:
    """What recipes need besides parameters: saved behind what the sampler needs."""
    made = [t.recipe.constants for t in (use.weight, use.bias) if t is not None and t.recipe is not None]
    return tuple([constant for constants in made for constant in constants])


def _tracked(facts: tuple[Any, ...] | None, recorder: Recorder, constants: list[Tensor]) -> TrackedTensor | None:
    """What `_facts` was told of; takes its constants off the front of the list."""
    if facts is None:
        return None
    indices, made = facts
    recipe = None
    if made is not None:
        steps, count = made
        recipe = Recipe(steps, tuple(constants[:count]))
        del constants[:count]
    return TrackedTensor(tuple(recorder.parameters[i] for i in indices), None, recipe=recipe)


def _facts_of(number: int, sizes: list[int]) -> tuple[Any, ...]:
    kind, *facts, dtype, memory_format = _uses[number]
    return kind, *_with_sizes(tuple(facts), iter(sizes[1:])), dtype, memory_format


def _use(number: int, recorder: Recorder, sizes: list[int], saved: list[Tensor]) -> tuple[Use, tuple[Tensor, ...]]:
    """The use of that number, and which of the saved tensors are its sampler's."""
    batch = sizes[0]
    kind, fields, weight, bias, layout, subset, dtype, memory_format = _facts_of(number, sizes)
    made = [facts[1][1] for facts in (weight, bias) if facts is not None and facts[1] is not None]
    of_sampler = len(saved) - sum(made)
    constants = saved[of_sampler:]
    of_weight, of_bias = _tracked(weight, recorder, constants), _tracked(bias, recorder, constants)
    fused, unbatched, where = layout
    axis = None if where is None else SampleAxis(where[0], where[1], batch)
    which = None if subset is None else slice(*subset)
    use = Use(kind(*fields), of_weight, of_bias, batch, fused, unbatched, axis, which, dtype, memory_format)
    use.number = number
    use.shared = {tracked: tracked.traced_uses > 1 for tracked in use.parameters}
    return use, tuple(saved[:of_sampler])


# What it records would not be done again by the replay of a CUDA graph: inductor must leave it out of those.
@library.custom_op("hf_clars::close", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def close(xs: list[Tensor], d: Tensor, key: int, number: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    recorder = _recorders[key]
    use, saved = _use(number, recorder, sizes, xs)
    sampler = use.sampler
    if isinstance(sampler, FunctionSampler) and not sampler.is_samplewise(saved, d):
        reason = f"{name_of(sampler.steps[1])} does not treat it sample by sample"
        recorder.untracked.exclude(use.parameters, reason)
        return torch.empty(0, device=d.device), torch.zeros(())
    gradient = measure(recorder, use, saved, d)
    return torch.empty(0, device=d.device) if gradient is None else gradient, torch.zeros(())


@close.register_fake
def _(xs: list[Tensor], d: Tensor, key: int, number: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    _, (shape, *_), _, _, (fused, *_), _, dtype, memory_format = _facts_of(number, sizes)
    if not fused:
        return torch.empty(0, device=d.device), torch.zeros(())
    return torch.empty(shape, dtype=dtype, device=d.device, memory_format=memory_format), torch.zeros(())
