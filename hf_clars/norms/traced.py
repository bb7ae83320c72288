"""Measuring as one opaque operator, so that torch.compile traces a measured model from end to end.

A compiled backward pass calls the operator with what the eager one would look up: numbers that lead to the ledger, the
rule and the entries. What it does is what the eager pass does, Python and all; its second result only keeps the
compiler from dropping a call whose gradient nobody wants.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, library
from torch.fx.experimental.symbolic_shapes import guard_scalar

from .fallback import FunctionRule
from .marks import Source
from .recipes import Recipe
from .sample_axis.axis import SampleAxis
from .sample_axis.call import name_of
from .shown import show_to_modes

if TYPE_CHECKING:
    from .ledger import Ledger
    from .tap import Use


show_to_modes()

_ledgers: weakref.WeakValueDictionary[int, Ledger] = weakref.WeakValueDictionary()
_uses: list[tuple[Any, ...]] = []


def register(ledger: Ledger) -> int:
    """A number by which the operator finds the ledger."""
    key = max(_ledgers, default=-1) + 1
    _ledgers[key] = ledger
    return key


@torch.compiler.assume_constant_result
def _number_of(*facts: Any) -> int:
    """The number of a use, at trace time: the same facts, the same number."""
    if facts not in _uses:
        _uses.append(facts)
    return _uses.index(facts)


def numbered(use: Use) -> tuple[int, list[int]]:
    """A number for everything about a use that does not change from one pass to the next, and the sizes in it, which
    may: with dynamic shapes the compiler does not know them."""
    rule = use.rule
    fields = tuple(getattr(rule, name) for name in rule.__dataclass_fields__)
    weight, bias = _facts(use.weight), _facts(use.bias)
    subset = None if use.subset is None else (use.subset.start, use.subset.stop, use.subset.step)
    axis = None if use.axis is None else (use.axis.dim, use.axis.inner)
    # They may be symbols, of which the compiler takes the value here.
    fused, unbatched = [True if fact else False for fact in (use.fused, use.unbatched)]  # noqa: SIM210
    sizes = [use.batch]
    facts = _without_sizes((fields, weight, bias, (fused, unbatched, axis), subset), sizes)
    return _number_of(type(rule), *facts, use.dtype, use.memory_format), sizes


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


def _facts(source: Source | None) -> tuple[Any, ...] | None:
    """Indices of the parameters; and of a tensor computed from them the steps and the number of constants."""
    if source is None:
        return None
    made = None if source.recipe is None else (source.recipe.steps, len(source.recipe.constants))
    return tuple([entry.index for entry in source.entries]), made


def constants_of(use: Use) -> tuple[Tensor, ...]:
    """What recipes need besides parameters: saved behind what the rule needs."""
    made = [s.recipe.constants for s in (use.weight, use.bias) if s is not None and s.recipe is not None]
    return tuple([constant for constants in made for constant in constants])


def _source(facts: tuple[Any, ...] | None, ledger: Ledger, constants: list[Tensor]) -> Source | None:
    """What `_facts` was told of; takes its constants off the front of the list."""
    if facts is None:
        return None
    indices, made = facts
    recipe = None
    if made is not None:
        steps, count = made
        recipe = Recipe(steps, tuple(constants[:count]))
        del constants[:count]
    return Source(tuple(ledger.entries[i] for i in indices), None, recipe=recipe)


def _facts_of(number: int, sizes: list[int]) -> tuple[Any, ...]:
    kind, *facts, dtype, memory_format = _uses[number]
    return kind, *_with_sizes(tuple(facts), iter(sizes[1:])), dtype, memory_format


def _use(number: int, ledger: Ledger, sizes: list[int], saved: list[Tensor]) -> tuple[Use, tuple[Tensor, ...]]:
    """The use of that number, and which of the saved tensors are its rule's."""
    from .tap import Use

    batch = sizes[0]
    kind, fields, weight, bias, layout, subset, dtype, memory_format = _facts_of(number, sizes)
    made = [facts[1][1] for facts in (weight, bias) if facts is not None and facts[1] is not None]
    of_rule = len(saved) - sum(made)
    constants = saved[of_rule:]
    of_weight, of_bias = _source(weight, ledger, constants), _source(bias, ledger, constants)
    fused, unbatched, where = layout
    axis = None if where is None else SampleAxis(where[0], where[1], batch)
    which = None if subset is None else slice(*subset)
    use = Use(kind(*fields), of_weight, of_bias, batch, fused, unbatched, axis, which, dtype, memory_format)
    use.number = number
    entries = [entry for source in (of_weight, of_bias) if source is not None for entry in source.entries]
    use.shared = {entry: entry.traced_uses > 1 for entry in entries}
    return use, tuple(saved[:of_rule])


# What it does to the ledger would not be done again by the replay of a CUDA graph: inductor must leave it out of those.
@library.custom_op("hf_clars::close", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def close(xs: list[Tensor], d: Tensor, ledger: int, number: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    use, saved = _use(number, _ledgers[ledger], sizes, xs)
    if isinstance(use.rule, FunctionRule) and not use.rule.is_samplewise(saved, d):
        entries = [entry for source in (use.weight, use.bias) if source is not None for entry in source.entries]
        _ledgers[ledger].exclude(entries, f"{name_of(use.rule.steps[1])} does not treat it sample by sample")
        return torch.empty(0, device=d.device), torch.zeros(())
    gradient = use.close(saved, d)
    return torch.empty(0, device=d.device) if gradient is None else gradient, torch.zeros(())


@close.register_fake
def _(xs: list[Tensor], d: Tensor, ledger: int, number: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    _, (shape, *_), _, _, (fused, *_), _, dtype, memory_format = _facts_of(number, sizes)
    if not fused:
        return torch.empty(0, device=d.device), torch.zeros(())
    return torch.empty(shape, dtype=dtype, device=d.device, memory_format=memory_format), torch.zeros(())
