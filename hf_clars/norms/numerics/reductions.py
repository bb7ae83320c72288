"""Sums over a tensor of per-sample values."""

import torch
from torch import Tensor

# From here on a CPU's BLAS takes a sample's norm faster than a reduction over all samples does, and more accurately.
_LONG = 1024


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms are accumulated in: float32 for half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)


def squared_norms(samples: Tensor) -> Tensor:
    """`[B, ...] → [B]`: the squared 2-norm of each sample."""
    rows, dtype = samples.reshape(samples.shape[0], -1), norm_dtype(samples.dtype)
    if samples.device.type == "cpu" and rows.shape[1] >= _LONG:
        return torch.stack([torch.dot(row, row) for row in rows.to(dtype).unbind()])
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).square()


def add_samples_(total: Tensor, samples: Tensor) -> None:
    """`total += Σ_i samples_i`, for `samples [B, *total.shape]`."""
    if samples.shape[0] == 1:
        total += samples[0]
    elif samples.device.type == "cpu" and samples.dtype == total.dtype:
        rows = samples.reshape(samples.shape[0], -1)
        total.view(-1).addmv_(rows.T, rows.new_ones(rows.shape[0]))
    else:
        total += samples.sum(0, dtype=total.dtype)
