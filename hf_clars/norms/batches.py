"""A batch of samples: its inputs and targets, how many samples it has, and one sample of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a pair or of a dictionary.

    Raises:
        UserError: a dictionary without `"labels"`; anything else that is not a pair.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise UserError(f"a dictionary batch needs its targets under 'labels'; it has {', '.join(batch)}")
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        parts = f" of {len(batch)} parts" if isinstance(batch, (tuple, list)) else ""
        raise UserError(
            f"a batch is a pair (inputs, targets), or a dictionary with 'labels'; got a {type(batch).__name__}{parts}"
        )
    inputs, targets = batch
    return inputs, targets


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`values` with every tensor in nested tuples, lists and mappings changed; what is no tensor stays itself."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        changed = {k: mapped(v, change) for k, v in values.items()}
        if type(values) is dict or not isinstance(values, MutableMapping):
            return changed
        other: Any = copy.copy(values)  # the attributes of a BatchEncoding stay
        for key, value in changed.items():
            other[key] = value
        return other
    if isinstance(values, (tuple, list)):
        each = [mapped(v, change) for v in values]
        return type(values)(*each) if hasattr(values, "_fields") else type(values)(each)
    return values


def named_tensors(values: Any, name: str) -> list[tuple[str, Tensor]]:
    """What each tensor with a dimension in nested tuples, lists and mappings is called, and the tensor."""
    if isinstance(values, Tensor):
        return [(name, values)] if values.ndim else []
    if isinstance(values, Mapping):
        return [found for k, v in values.items() for found in named_tensors(v, f"{name}[{k!r}]")]
    if isinstance(values, (tuple, list)):
        return [found for k, v in enumerate(values) for found in named_tensors(v, f"{name}[{k}]")]
    return []


def sample_count(inputs: Any, targets: Any, batch_size: int | None) -> tuple[int, str]:
    """How many samples a batch has, and a line about the tensors that disagree (empty if none does).

    The first tensor that has a dimension decides, of the targets and then of the inputs, unless `batch_size` is given.

    Raises:
        UserError: fewer than two samples; no tensor of the inputs has as many rows.
    """
    tensors = [*named_tensors(targets, "targets"), *named_tensors(inputs, "inputs")]
    if batch_size is None:
        if not tensors:
            raise UserError("no tensor of the batch has a dimension, so it has no samples")
        size, decides = tensors[0][1].shape[0], f"by {tensors[0][0]}"
    elif isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise UserError(f"batch_size={batch_size!r} must be a whole number")
    else:
        size, decides = batch_size, "by batch_size"
    shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors)
    if size < 2:
        raise UserError(f"a batch of {size} sample(s), {decides}, shows nothing: give two or more ({shapes})")
    if not any(t.shape[0] == size for _, t in named_tensors(inputs, "inputs")):
        give = "give batch_size" if batch_size is None else "there is nothing to cut"
        raise UserError(f"no tensor of the inputs has {size} rows, {decides}: {give} ({shapes})")
    whole = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors if t.shape[0] != size)
    return size, f"{size} samples, {decides}; every sample is given the whole of {whole}" if whole else ""


def one_sample(values: Any, size: int, i: int) -> Any:
    """Row i, as a batch of one, of every tensor that has `size` rows; others whole."""
    return mapped(values, lambda t: t[i : i + 1] if t.ndim and t.shape[0] == size else t)


def in_dtype(values: Any, dtype: torch.dtype) -> Any:
    """`values` with every real floating-point tensor in `dtype`."""
    return mapped(values, lambda t: t.to(dtype) if t.is_floating_point() else t)
