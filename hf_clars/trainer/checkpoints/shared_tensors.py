"""Tensors of a model that share memory: tied weights, and views of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


def stored_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors can store: no tensor that another one contains, and each contiguous in memory of its own.

    Raises:
        ValueError: something is not a tensor, such as the extra state of a module.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the model has no tensor but {type(tensor).__name__} as {name}, which is not stored")
    largest_first = sorted(
        state, key=lambda name: (-state[name].untyped_storage().nbytes(), -state[name].numel(), name)
    )
    kept: dict[str, Tensor] = {}
    neighbours: dict[Any, list[Memory]] = {}
    for name in largest_first:
        memory = Memory.of(state[name])
        others = neighbours.setdefault(memory.storage, [])
        if not any(other.contains(memory) for other in others):
            kept[name] = state[name]
            others.append(memory)
    alone = {name: len(neighbours[Memory.of(tensor).storage]) == 1 for name, tensor in kept.items()}
    return {
        name: kept[name].contiguous() if alone[name] else kept[name].clone(memory_format=torch.contiguous_format)
        for name in state
        if name in kept
    }


class Memory(NamedTuple):
    """Where a tensor's values are."""

    storage: Any
    start: int
    end: int
    layout: Any

    @classmethod
    def of(cls, tensor: Tensor) -> Memory:
        start = tensor.data_ptr()
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        end = start + (extent * tensor.element_size() if tensor.numel() else 0)
        whole = extent == tensor.numel()
        layout = "whole" if whole else (tensor.shape, tensor.stride(), tensor.dtype)
        # A tensor without values is nobody's part.
        storage = (tensor.device, tensor.untyped_storage().data_ptr()) if tensor.numel() else object()
        return cls(storage, start, end, layout)

    def contains(self, other: Memory) -> bool:
        """Whether all of the other's values are among these."""
        if self.storage != other.storage:
            return False
        return self == other or (self.layout == "whole" and self.start <= other.start and other.end <= self.end)
