"""Measuring as one opaque operator, so that torch.compile traces a measured model from end to end.

A compiled backward pass calls the operator with what the eager one would look up: numbers that lead to the ledger, the
rule and the entries. What it does is what the eager pass does, Python and all; its second result only keeps the
compiler from dropping a call whose gradient nobody wants.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, library

from .marks import Source

if TYPE_CHECKING:
    from .ledger import Ledger
    from .tap import Use

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


def number_of(use: Use) -> int:
    """A number for everything about a use that does not change from one pass to the next, but for its batch size."""
    rule = use.rule
    fields = tuple(getattr(rule, name) for name in rule.__dataclass_fields__)
    weight = -1 if use.weight is None else use.weight.entries[0].index
    bias = -1 if use.bias is None else use.bias.entries[0].index
    subset = None if use.subset is None else (use.subset.start, use.subset.stop, use.subset.step)
    layout = use.fused, use.unbatched, use.positions_first
    return _number_of(type(rule), fields, weight, bias, layout, subset, use.dtype)


def _use(number: int, ledger: Ledger, batch: int) -> Use:
    from .tap import Use

    kind, fields, weight, bias, layout, subset, dtype = _uses[number]
    entries = {i: ledger.entries[i] for i in (weight, bias) if i >= 0}
    of_weight, of_bias = (Source((entries[i],), None) if i >= 0 else None for i in (weight, bias))
    fused, unbatched, positions_first = layout
    which = None if subset is None else slice(*subset)
    use = Use(kind(*fields), of_weight, of_bias, batch, fused, unbatched, positions_first, which, dtype)
    use.number = number
    use.shared = {entry: entry.traced_uses > 1 for entry in entries.values()}
    return use


@library.custom_op("hf_clars::close", mutates_args=())
def close(xs: list[Tensor], d: Tensor, ledger: int, number: int, batch: int) -> tuple[Tensor, Tensor]:
    gradient = _use(number, _ledgers[ledger], batch).close(tuple(xs), d)
    return torch.empty(0, device=d.device) if gradient is None else gradient, torch.zeros(())


@close.register_fake
def _(xs: list[Tensor], d: Tensor, ledger: int, number: int, batch: int) -> tuple[Tensor, Tensor]:
    _, (shape, *_), _, _, (fused, *_), _, dtype = _uses[number]
    gradient = torch.empty(shape, dtype=dtype, device=d.device) if fused else torch.empty(0, device=d.device)
    return gradient, torch.zeros(())
