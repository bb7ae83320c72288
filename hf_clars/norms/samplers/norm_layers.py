"""Samplers of the affine weights of norms: `c_i = Σ_p d ⊙ x̂`, with `x̂` the normalised input before weight and bias."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..numerics.reductions import norm_dtype
from .base import Sampler, Saved


@dataclass(frozen=True)
class NormSampler(Sampler):
    """Norms over the last dimensions, where the weight stands."""

    eps: float | None

    def sample_dims(self, ndim: int) -> int:
        return ndim - len(self.shape)

    @abstractmethod
    def normalised(self, x: Tensor, *statistics: Tensor) -> Tensor:
        """`x̂`, without weight and bias."""

    def _reduce(self, values: Tensor, batch: int) -> Tensor:
        """Sum `[n, *positions, *shape]` over the positions."""
        return values.reshape(batch, -1, *self.shape).sum(1, dtype=norm_dtype(values.dtype))

    def operands(self, xs: Saved) -> Saved:
        # Before any sample is taken out: BatchNorm normalises the batch as a whole.
        return (self.normalised(*xs),)

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        return self._reduce(d * xs[0], batch)

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        return self._reduce(d, batch)


@dataclass(frozen=True)
class LayerNormSampler(NormSampler):
    def normalised(self, x: Tensor, *statistics: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, eps=self.eps or 0.0)


@dataclass(frozen=True)
class RMSNormSampler(NormSampler):
    def normalised(self, x: Tensor, *statistics: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, eps=self.eps)


@dataclass(frozen=True)
class ChannelNormSampler(NormSampler):
    """Norms whose weight stands in dimension 1."""

    def sample_dims(self, ndim: int) -> int:
        return 1

    def _reduce(self, values: Tensor, batch: int) -> Tensor:
        return super()._reduce(values.movedim(1, -1), batch)


@dataclass(frozen=True)
class GroupNormSampler(ChannelNormSampler):
    groups: int

    def normalised(self, x: Tensor, *statistics: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, eps=self.eps or 0.0)


@dataclass(frozen=True)
class InstanceNormSampler(ChannelNormSampler):
    """Statistics of each sample, or those that are saved with the input."""

    def normalised(self, x: Tensor, *statistics: Tensor) -> Tensor:
        mean, variance = statistics or (None, None)
        return F.instance_norm(x, mean, variance, None, None, not statistics, 0.0, self.eps or 0.0)


@dataclass(frozen=True)
class BatchNormSampler(ChannelNormSampler):
    """Statistics of the whole batch, or those that are saved with the input."""

    def normalised(self, x: Tensor, *statistics: Tensor) -> Tensor:
        mean, variance = statistics or (None, None)
        return F.batch_norm(x, mean, variance, None, None, not statistics, 0.0, self.eps or 0.0)
