"""The same operations on whole tensors and on FSDP2's shards of them (`DTensor`)."""

from collections.abc import Sequence

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
