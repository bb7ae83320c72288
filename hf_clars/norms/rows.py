"""Which rows of a tensor belong to which sample, as far as functions of them tell."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .marks import has_own_rows, has_samples, is_shuffled, is_source, tensors_in
from .operators import (
    BROADCASTING,
    CONCATENATING,
    COPYING,
    KEEPING,
    MATMUL,
    PRODUCTS,
    REPEATING,
    RETURNING,
    concatenates_beside,
)


def has_rows(func: Any, u: Tensor, ndim: int, count: int, batch: int) -> bool:
    """Whether it is known which rows of `u` belong to which sample, where `func` joins it with `count` rows of samples.

    Args:
        ndim: of the operands with samples. With fewer dimensions, `u` is the same for all.
    """
    if func in CONCATENATING or func in PRODUCTS:
        # As many rows as samples may be heads or experts, whose products have a matrix each.
        if u.ndim == ndim and u.shape[0] == count and has_own_rows(u):
            return True
        return func in MATMUL and (u.ndim < ndim or u.shape[0] == 1)
    return u.ndim < ndim or u.shape[0] in (1, batch) or (u.shape[0] == count and has_own_rows(u))


def copies_rows(func: Any, args: Any, kwargs: Any, out: Tensor, batch: int) -> bool:
    """Whether the rows of `out`, which depends on no sample, were made for the samples, one after the other.

    So does repeating something as a whole, or joining it with a constant that has so many rows. Parameters' own rows,
    and views of them, are something else: heads, experts, positions.
    """
    if not out.ndim or out.shape[0] < 2 or out.shape[0] % batch:
        return False
    tensors = tensors_in((*args, *kwargs.values()))
    if func in COPYING:
        u = args[0]
        rows = u.shape[0] if u.ndim == out.ndim else 1
        return rows > 0 and (out.shape[0] // rows) % batch == 0 and out.shape[0] > rows
    if func is Tensor.transpose:
        return has_own_rows(args[0]) and 0 not in [dim % out.ndim for dim in args[1:]]
    if func in KEEPING:
        return has_own_rows(args[0])
    if func is torch.embedding:
        return not is_source(args[1]) and args[1].ndim > 1
    if func in BROADCASTING or func is F.linear:
        alike = [t for t in tensors if t.ndim == out.ndim and t.shape[0] == out.shape[0]]
        return len(alike) > 0 and False not in [has_own_rows(t) or not is_source(t) for t in alike]
    return False


def shuffles(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], batch: int | None) -> bool:
    """Whether the rows of a result stand in an order in which it is not known whose they are.

    Rows that are picked once by an index that depends on samples, as tokens are that are routed to experts, do; picked
    from those again, they are back in place, as they are after they were added or written to rows of another tensor.
    Several batches one after the other do, too: crops, views, copies.
    """
    if func in RETURNING:
        return is_shuffled(args[0])
    if func is Tensor.__getitem__ and has_samples(args[0]):
        first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        if has_samples(first):
            return not is_shuffled(args[0])
    if func in (torch.sort, Tensor.sort) and args[0].ndim == 1:
        return True
    if batch is not None and _puts_batches_in_line(func, args, kwargs, tensors, batch):
        return True
    return True in [is_shuffled(t) for t in tensors]


def _puts_batches_in_line(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], batch: int) -> bool:
    if func in CONCATENATING:
        whole = [t for t in tensors if has_samples(t) and t.ndim > 1 and t.shape[0] % batch == 0]
        return len(whole) > 1 and not concatenates_beside(tensors, args, kwargs)
    if func in REPEATING and len(args) > 1 and has_samples(args[0]):
        times = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return len(times) == args[0].ndim > 1 and times[0] > 1 and args[0].shape[0] % batch == 0
    return False
