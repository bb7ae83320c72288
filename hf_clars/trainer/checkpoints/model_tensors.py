"""Which tensors of a model a checkpoint must have: tied weights and views share memory, and one name is enough."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...errors import UserError

_NAMED = 8  # of each kind in a message


def differences(model: nn.Module, missing: Iterable[str], unexpected: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those that matter: a tensor that has been loaded under another name, or as a part of another, is not missing."""
    absent = set(missing)
    if not absent:
        return [], sorted(unexpected)
    state = model.state_dict()
    loaded = [Memory.of(tensor) for name, tensor in state.items() if name not in absent]
    absent -= set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    restored = {n for n in absent & state.keys() if any(other.contains(Memory.of(state[n])) for other in loaded)}
    return sorted(absent - restored), sorted(unexpected)


def named(missing: list[str], unexpected: list[str]) -> str:
    lacks = f"it lacks {_listed(missing)}" if missing else ""
    has = f"it has {_listed(unexpected)}, which the model has not" if unexpected else ""
    return " and ".join(part for part in (lacks, has) if part)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def refuse_other_names(checkpoint: Path, model: Any) -> None:
    """For a Trainer that is not ours, has loaded a checkpoint, and went on with random values for what was not there.

    Raises:
        UserError: the names in the checkpoint are not the model's.
    """
    file, index = checkpoint / SAFE_WEIGHTS_NAME, checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if file.is_file():
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
    elif index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    else:  # adapters alone, or FSDP's
        return
    own = model.state_dict().keys()
    missing, unexpected = differences(model, own - names, names - own)
    if missing or unexpected:
        raise UserError(
            f"Trainer does not restore this model from {checkpoint}: {named(missing, unexpected)}. ClarsTrainer does "
            "where transformers has renamed them"
        )


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
