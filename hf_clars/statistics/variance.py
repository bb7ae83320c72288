"""Moments of every layer's per-sample gradients over a data set, and the variance factor M_k (Fig. 2)."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..formulas import gradient_variance_factor
from ..norms import PerSampleNorms
from ..norms.batches import split_batch


@dataclass(frozen=True)
class GradientMoments:
    """A layer's per-sample gradients at one point, over all samples of a data set.

    Attributes:
        gradient_square: `‖∇_k f‖²`.
        mean_norm: `E‖∇_k f_i‖`, the denominator of Eq. 5.
        mean_square: `E‖∇_k f_i‖²`.
    """

    gradient_square: float
    mean_norm: float
    mean_square: float

    @property
    def variance(self) -> float:
        """`E‖∇_k f_i − ∇_k f‖²`, Assumption 2's left-hand side."""
        return max(0.0, self.mean_square - self.gradient_square)  # rounding may leave less than 0

    @property
    def least_factor(self) -> float:
        """Assumption 2's least `M_k` with `M = 0`; infinite where the mean gradient alone vanishes."""
        if not self.gradient_square:
            return math.inf if self.variance else 0.0
        return self.variance / self.gradient_square


def gradient_variance(
    model: nn.Module, batches: Iterable[Any], loss_fn: Callable[[Any, Any], Tensor]
) -> dict[str, float]:
    """`M_k = ((1/n) Σ_i ‖∇_k f_i‖²) / ‖(1/n) Σ_i ∇_k f_i‖²` over all samples of all batches.

    Args:
        model, batches, loss_fn: see `measure_moments`; so are train and eval mode.

    Returns:
        Parameter name → `M_k`, for every measured parameter of two or more dimensions. At least 1; infinite or NaN
        where the mean gradient is zero.

    Raises:
        UserError: there is no batch; a PerSampleNorms is attached to the model already.
    """
    moments = measure_moments(model, batches, loss_fn)
    squares = torch.tensor([m.mean_square for m in moments.values()], dtype=torch.float64)
    norms = torch.tensor([m.gradient_square for m in moments.values()], dtype=torch.float64).sqrt()
    return dict(zip(moments, gradient_variance_factor(squares, norms, 1).tolist(), strict=True))


def measure_moments(
    model: nn.Module, batches: Iterable[Any], loss_fn: Callable[[Any, Any], Tensor]
) -> dict[str, GradientMoments]:
    """Parameter name → `GradientMoments`, for every measured parameter of two or more dimensions.

    Parameters, gradients, buffers (BatchNorm's running statistics) and train/eval mode stay as they were. `∇f_i` is n
    times sample i's contribution to the gradient of the mean; where BatchNorm in train mode couples the samples of a
    batch the two are not the same, and the contribution is taken, as CLARS does. Use `model.eval()` for `∇f_i` alone.

    Args:
        model: called as `model(inputs)`, or `model(**inputs)` for dictionary batches.
        batches: pairs `(inputs, targets)`, or dictionaries with the targets under `"labels"`.
        loss_fn: `loss_fn(outputs, targets)` → the mean loss of the batch.

    Raises:
        UserError: there is no batch; a PerSampleNorms is attached to the model already.
    """
    kept = [p.grad for p in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.ndim >= 2}
    gradients: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    total = 0
    try:
        with PerSampleNorms(model, bias_and_norm=False) as measured:
            for inputs, targets in map(split_batch, batches):
                model.zero_grad()
                measured.reset()
                loss_fn(model(**inputs) if isinstance(inputs, Mapping) else model(inputs), targets).backward()
                size = targets.shape[0]
                sums, square_sums = measured.sums(), measured.square_sums()
                for name, parameter in parameters.items():
                    if name in sums and parameter.grad is not None:
                        wide = parameter.grad.to(torch.promote_types(parameter.dtype, torch.float32))
                        _add(gradients, name, size * wide)
                        _add(norms, name, size * sums[name])  # ‖∇f_i‖ = size · ‖c_i‖
                        _add(squares, name, size**2 * square_sums[name])
                total += size
    finally:
        for parameter, gradient in zip(model.parameters(), kept, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    if total == 0:
        raise UserError("got no batch to measure gradients on: `batches` is empty (an exhausted iterator?)")
    return {
        name: GradientMoments((g.norm().item() / total) ** 2, norms[name].item() / total, squares[name].item() / total)
        for name, g in gradients.items()
    }


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
