"""What the options of a parameter group say of its members, and which values of them are refused."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, did_you_mean

_LARGEST = 1e30  # what torch computes with is float32
BIAS_AND_NORM_RULES = ("eta", "mlperf", "authors", "paper")


def is_adapted(group: dict[str, Any], weight: Tensor) -> bool:
    """Whether this member of the group has a learning rate of its own, while the group is not `uniform`."""
    if group["bias_and_norm"] == "paper":
        return True
    return weight.ndim >= 2 if group["layer_adaptation"] is None else bool(group["layer_adaptation"])


def decay_of(group: dict[str, Any], adapted: bool) -> float:
    """λ of the members that are, or are not, adapted."""
    return group["weight_decay"] if adapted or group["bias_and_norm"] == "authors" else 0.0


def gamma_scale(group: dict[str, Any]) -> float | Tensor:
    """γ_scale, a number or 0-dim."""
    rate = group["lr"]
    return rate.reshape(()) if isinstance(rate, Tensor) else rate


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms and learning rates of tensors of this dtype are computed in: real, of float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    return wide.to_real() if wide.is_complex else wide


def common_rates(group: dict[str, Any], members: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """γ of members without a learning rate of their own, `[members]`."""
    rate = gamma_scale(group)
    if group["bias_and_norm"] == "eta" and not group["uniform"]:
        rate = rate * group["eta"]
    if isinstance(rate, Tensor):
        return torch.ones(members, dtype=dtype, device=device) * rate
    return torch.full((members,), rate, dtype=dtype, device=device)


def momentum_buffer(state: dict[str, Any], weight: Tensor) -> Tensor:
    """The displacement `u` that is kept in the weight's state; zero at first.

    Raises:
        RuntimeError: it would be made while a CUDA graph is captured, and so be zero again at every replay.
    """
    if "momentum_buffer" not in state:
        refuse_capture(weight.device)
        state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    return state["momentum_buffer"]


def is_captured(device: torch.device) -> bool:
    """Whether what is launched now becomes part of a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def refuse_capture(device: torch.device) -> None:
    """Raise `RuntimeError` while a CUDA graph is captured."""
    if is_captured(device):
        raise RuntimeError("take one step() before one is captured in a CUDA graph: it makes what later ones work with")


def check_hyperparameters(
    *, lr: float | Tensor, momentum: float, eta: float, weight_decay: float, bias_and_norm: str
) -> None:
    """Raise `UserError` for a value that is negative, NaN, infinite or unknown."""
    _require(lr, "lr", lambda v: 0 <= v < math.inf, "a finite number ≥ 0")
    _require(momentum, "momentum", lambda v: 0 <= v < 1, "in [0, 1)")
    _require(eta, "eta", lambda v: 0 < v < math.inf, "a finite number > 0")
    _require(weight_decay, "weight_decay", lambda v: 0 <= v < math.inf, "a finite number ≥ 0")
    for name, value in (("lr", lr), ("eta", eta), ("weight_decay", weight_decay)):
        _require(value, name, lambda v: v <= _LARGEST, f"at most {_LARGEST:g}")
    if not isinstance(lr, Tensor) and lr * eta > _LARGEST:
        raise UserError(f"lr={lr} times eta={eta} must be at most {_LARGEST:g}")
    if bias_and_norm not in BIAS_AND_NORM_RULES:
        hint = did_you_mean(bias_and_norm, BIAS_AND_NORM_RULES)
        raise UserError(f"bias_and_norm={bias_and_norm!r} is unknown; {hint}")


def check_group(options: dict[str, Any], who: str, can_fuse: bool) -> None:
    """Raise `UserError` for options of a parameter group that are wrong, or that the optimizer `who` does not have."""
    names = ("lr", "momentum", "eta", "weight_decay", "bias_and_norm")
    check_hyperparameters(**{name: options[name] for name in names})
    for name in ("maximize", "differentiable"):
        if options.get(name):
            raise UserError(f"{who} has no {name}: leave it out of the parameter group")
    if options["fused"] and options["foreach"]:
        raise UserError("fused=True and foreach=True exclude each other: leave one of them None")
    if options["fused"] and not can_fuse:
        raise UserError(f"{who} has no fused form: leave fused=None")


def _require(value: float | Tensor, name: str, holds: Callable[[Any], bool], expected: str) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(f"{name}: Tensor {name} must be 1-element, and this one has the shape {tuple(value.shape)}")
        # Looking at one on a device would wait for the device; an infinite one may be on its way to a value.
        if value.device.type == "cpu" and type(value) in (Tensor, nn.Parameter) and float(value) < 0:
            raise UserError(f"{name}={value!r} must be {expected}")
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not holds(value):
        raise UserError(f"{name}={value!r} must be {expected}")
