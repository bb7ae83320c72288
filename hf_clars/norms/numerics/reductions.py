"""Sums over a tensor of per-sample values."""

import torch
from torch import Tensor

# From here on a CPU's BLAS takes a sample's norm as fast as a reduction over all samples does, and more accurately.
_LONG = 1 << 15
_MANY = 1 << 17  # numbers that a CPU's BLAS sums up faster than a reduction does
CANCELLED = 64  # at this, five roundings of float32 are 2e-5 of a norm


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms are accumulated in: float32 for half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)


def cancels(squares: Tensor, terms: Tensor) -> bool:
    """Whether any sample's square is so small, against the terms it was summed up from, that their rounding shows.

    False on a device, which is not waited for.
    """
    return squares.device.type == "cpu" and bool((squares < terms / CANCELLED).any())


def squared_norms(samples: Tensor) -> Tensor:
    """`[B, ...] → [B]`: the squared 2-norm of each sample."""
    rows, dtype = samples.reshape(samples.shape[0], -1), norm_dtype(samples.dtype)
    if samples.device.type == "cpu" and rows.shape[1] >= _LONG:
        return torch.stack([torch.vdot(row, row).real for row in rows.to(dtype).unbind()])
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).square()


def sum_of_samples(samples: Tensor, total: Tensor | None = None) -> Tensor:
    """`total + Σ_i samples_i`, for `samples [B, *total.shape]`, in the dtype of norms; `total` may be changed."""
    dtype = norm_dtype(samples.dtype)
    if samples.device.type == "cpu" and samples.dtype == dtype and samples.numel() > _MANY and samples.shape[0] > 1:
        rows = samples.reshape(samples.shape[0], -1)
        if total is None:
            total = torch.zeros(samples.shape[1:], dtype=dtype)
        total.view(-1).addmv_(rows.T, rows.new_ones(rows.shape[0]))
        return total
    if total is not None and samples.shape[0] == 1:
        return total.add_(samples[0])
    added = samples.sum(0, dtype=dtype)
    return added if total is None else total.add_(added)
