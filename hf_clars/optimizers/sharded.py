"""The same operations on whole tensors and on FSDP2's shards of them (`DTensor`)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from .group_rules import real_dtype


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this rank holds of each tensor, sharing its storage; what is not sharded is itself."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """2-norms of whole tensors, `[K]`, in float32 or wider; for shards with one reduction for all of them.

    The tensors have one dtype and, if sharded, one placement. A collective call where they are sharded.
    """
    parts = [torch.view_as_real(part) if part.is_complex() else part for part in local(tensors)]
    each = torch.stack(torch._foreach_norm(parts, 2, real_dtype(tensors[0].dtype)))
    if not isinstance(tensors[0], DTensor):
        return each
    squares = each.square()
    for dimension, placement in enumerate(tensors[0].placements):
        if placement.is_shard():
            dist.all_reduce(squares, group=tensors[0].device_mesh.get_group(dimension))
    return squares.sqrt()


def norms_of_any(tensors: Sequence[Tensor]) -> Tensor:
    """`norms` of tensors that may differ in dtype, device and placement: `[K]` on the first one's device, in the widest
    dtype. A collective call for each placement that is sharded."""
    alike: dict[Any, list[int]] = {}
    for k, tensor in enumerate(tensors):
        placement = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        alike.setdefault((tensor.device, tensor.dtype, placement), []).append(k)
    found = [norms([tensors[k] for k in which]) for which in alike.values()]
    if len(found) == 1:
        return found[0]
    dtype = torch.float64 if torch.float64 in {each.dtype for each in found} else torch.float32
    each: dict[int, Tensor] = {}
    for which, values in zip(alike.values(), found, strict=True):
        each.update(zip(which, values.to(tensors[0].device, dtype, non_blocking=True).unbind(), strict=True))
    return torch.stack([each[k] for k in range(len(tensors))])
