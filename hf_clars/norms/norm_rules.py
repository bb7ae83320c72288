"""Rules of the affine weights of norms."""

from abc import abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from . import forms
from .rule import Rule


class NormRule(Rule):
    """Affine weights of norms: `c_i = Σ_p d ⊙ x̂`, with `x̂` the normalised input before weight and bias."""

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return type(self.module).forward(self.module, x)

    def prepare(self, x: Tensor) -> Tensor:
        return x  # norms cast by themselves under autocast

    @abstractmethod
    def normalised(self, x: Tensor) -> Tensor:
        """`x̂`, without weight and bias."""

    def _reduce(self, values: Tensor, batch: int) -> Tensor:
        """Sum `[n, *positions, *weight.shape]` over the positions: weights stand in the last dimensions."""
        return values.reshape(batch, -1, *self.module.weight.shape).sum(1, dtype=forms.norm_dtype(values.dtype))

    def squares(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        return forms.squared_norms(self.samples(x, d, batch))

    def samples(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        return self._reduce(d * self.normalised(x), batch)

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        return self._reduce(d, batch)


class LayerNormRule(NormRule):
    def normalised(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.module.normalized_shape, eps=self.module.eps)


class RMSNormRule(NormRule):
    def normalised(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.module.normalized_shape, eps=self.module.eps)


class ChannelNormRule(NormRule):
    """Norms whose weight stands in dimension 1."""

    def _reduce(self, values: Tensor, batch: int) -> Tensor:
        return super()._reduce(values.movedim(1, -1), batch)


class GroupNormRule(ChannelNormRule):
    def normalised(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.module.num_groups, eps=self.module.eps)


class BatchNormRule(ChannelNormRule):
    """Batch- and InstanceNorm: batch statistics in train mode (or when none are tracked), else the running ones."""

    statistics: Callable[..., Tensor] = staticmethod(F.batch_norm)

    def normalised(self, x: Tensor) -> Tensor:
        m = self.module
        own = m.training or m.running_mean is None
        mean, variance = (None, None) if own else (m.running_mean, m.running_var)
        return self.statistics(x, mean, variance, None, None, own, 0.0, m.eps)


class InstanceNormRule(BatchNormRule):
    statistics = staticmethod(F.instance_norm)


class BatchNormActRule(BatchNormRule):
    """timm's BatchNorm with dropout and activation behind it."""

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.BatchNorm2d.forward(self.module, x)

    def finish(self, y: Tensor) -> Tensor:
        return self.module.act(self.module.drop(y))
