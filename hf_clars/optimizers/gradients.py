"""Which members of a parameter group have a gradient, and what one call can take together."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import sharded
from .group_rules import is_adapted


def are_present(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether any member has a gradient."""
    return any(weight.grad is not None for group in groups for weight in group["params"])


def are_zero(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether all gradients of this rank are zero. Waits for the device: only to tell an error from a rest."""
    gradients = [weight.grad for group in groups for weight in group["params"] if weight.grad is not None]
    return not any(bool(gradient.any()) for gradient in sharded.local(gradients))


def buckets(group: dict[str, Any], members: list[Tensor]) -> dict[tuple[torch.device, torch.dtype, bool], list[Tensor]]:
    """Those members of the group that have a gradient, by what one foreach call can take together.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    found: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = defaultdict(list)
    for weight in members:
        if weight.grad is None:
            continue
        if weight.grad.layout != torch.strided:
            raise RuntimeError(
                "layer-wise learning rates need dense gradients, and one is sparse: "
                "build nn.Embedding with sparse=False, or train it with another optimizer"
            )
        found[weight.device, weight.dtype, is_adapted(group, weight)].append(weight)
    return found
