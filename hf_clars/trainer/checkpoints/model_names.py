"""Whether a checkpoint has the tensors of a model, by their names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...errors import UserError
from .shared_tensors import Memory

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
        names = set(json.loads(index.read_text())["weight_map"])
    else:  # adapters alone, or FSDP's
        return
    own = model.state_dict().keys()
    missing, unexpected = differences(model, own - names, names - own)
    if missing or unexpected:
        raise UserError(
            f"Trainer does not restore this model from {checkpoint}: {named(missing, unexpected)}. ClarsTrainer does "
            "where transformers has renamed them"
        )
