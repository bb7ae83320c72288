"""What `PerSampleNorms` refuses to be made with."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import UserError, did_you_mean
from .measurement import MODES


def check_arguments(model: Any, mode: str, batch_dim: Any, norm_samples: Any, **sizes: Any) -> None:
    """Raises `UserError` for what is no model, or has no shapes yet, an unknown mode, and numbers out of range.

    Args:
        sizes: of batches, by argument; None where nothing is said.
    """
    if mode not in MODES:
        of_trainer = "; 'authors' is ClarsTrainer's, with passes of its own" if mode == "authors" else ""
        raise UserError(f"mode={mode!r} is unknown; {did_you_mean(mode, MODES)}{of_trainer}")
    if not isinstance(model, nn.Module):
        raise UserError(f"model={model!r:.60} must be a torch.nn.Module")
    _check_number("norm_samples", norm_samples, 1)
    for name, size in sizes.items():
        if size is not None:
            _check_number(name, size, 1)
    if batch_dim is not None:
        _check_number("batch_dim", batch_dim, 0)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise UserError(f"{lazy[0]} has no shape yet: call the model once on a batch before PerSampleNorms(model)")


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}")
