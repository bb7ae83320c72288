"""What a `GradScaler` has multiplied the loss with."""

from typing import Any

import torch
from torch import Tensor


def loss_scale(scaler: Any, device: torch.device) -> Tensor:
    """What a `GradScaler` multiplies losses with, 0-dim on `device`; 1 without one. Waits for nothing.

    The scaler is asked on `device`: brought to the host it would have to be waited for.
    """
    one = torch.ones((), device=device)
    return scaler.scale(one) if scaler is not None and scaler.is_enabled() else one
