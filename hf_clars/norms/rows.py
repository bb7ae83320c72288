"""Which rows of a tensor belong to which sample, as far as functions of them tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .marks import has_samples, is_shuffled, source_of
from .operators import RETURNING


def has_rows(u: Tensor, count: int, batch: int) -> bool:
    """Whether the rows of `u`, which meets `count` rows of samples, are known: one for all, or each sample's own.

    As many rows as a parameter has in any dimension may as well be heads or experts.
    """
    if u.shape[0] in (1, batch):
        return True
    source = source_of(u)
    return source is not None and u.shape[0] == count and all(count not in e.parameter.shape for e in source.entries)


def shuffles(func: Any, args: Any, tensors: list[Tensor]) -> bool:
    """Whether the rows of a result are in an order that depends on samples, as tokens routed to experts are.

    Rows that are picked once by an index that depends on samples are; picked from those again, they are back in place,
    as they are after they were added or written to rows of another tensor.
    """
    if func in RETURNING:
        return is_shuffled(args[0])
    if func is Tensor.__getitem__ and has_samples(args[0]):
        first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        if has_samples(first):
            return not is_shuffled(args[0])
    if func in (torch.sort, Tensor.sort) and args[0].ndim == 1:
        return True
    return True in [is_shuffled(t) for t in tensors]
