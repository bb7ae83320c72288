"""The layer-wise gradient variance factor M_k over a whole data set (Fig. 2)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .formulas import gradient_variance_factor
from .norms import PerSampleNorms


def gradient_variance(
    model: nn.Module, batches: Iterable[Any], loss_fn: Callable[[Any, Any], Tensor]
) -> dict[str, float]:
    """`M_k = ((1/n) Σ_i ‖∇_k f_i‖²) / ‖(1/n) Σ_i ∇_k f_i‖²` over all samples of all batches.

    The model's parameters, gradients and train/eval mode stay as they were. In train mode BatchNorm updates its running
    statistics, as in any forward pass, and couples the samples of a batch; use `model.eval()` for `∇f_i` alone.

    Args:
        model: called as `model(inputs)`, or `model(**inputs)` for dictionary batches.
        batches: pairs `(inputs, targets)`, or dictionaries with the targets under `"labels"`.
        loss_fn: `loss_fn(outputs, targets)` → the mean loss of the batch.

    Returns:
        Parameter name → `M_k`, for every measured parameter of two or more dimensions. At least 1; infinite or NaN
        where the mean gradient is zero.

    Raises:
        UserError: there is no batch; a PerSampleNorms is attached to the model already.
    """
    kept = [p.grad for p in model.parameters()]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.ndim >= 2}
    gradients = {
        n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in parameters.items()
    }
    squares = {n: torch.zeros((), dtype=g.dtype, device=g.device) for n, g in gradients.items()}
    measured: set[str] = set()
    total = 0
    try:
        with PerSampleNorms(model, vectors=False) as norms:
            for batch in batches:
                model.zero_grad()
                norms.reset()
                inputs, targets = _split(batch)
                size = targets.shape[0]
                outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
                loss_fn(outputs, targets).backward()
                sums = norms.square_sums()
                measured |= sums.keys()
                for name, parameter in parameters.items():
                    if name in sums and parameter.grad is not None:
                        gradients[name] += size * parameter.grad
                        squares[name] += size**2 * sums[name]  # ‖∇f_i‖ = size · ‖c_i‖
                total += size
    finally:
        for parameter, gradient in zip(model.parameters(), kept, strict=True):
            parameter.grad = gradient
    if total == 0:
        raise UserError("gradient_variance got no batch: `batches` is empty (an exhausted iterator?)")
    factors = {
        n: gradient_variance_factor(squares[n] / total**2, gradients[n].norm() / total, total)
        for n in parameters
        if n in measured
    }
    return {name: factor.item() for name, factor in factors.items()}


def _split(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise UserError(f"a dictionary batch needs its targets under 'labels'; it has {', '.join(batch)}")
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    inputs, targets = batch
    return inputs, targets
