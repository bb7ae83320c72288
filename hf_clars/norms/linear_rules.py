"""Rules of linear maps: Linear, convolutions and their transposes, embeddings."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import forms
from .rule import Rule


class LinearRule(Rule):
    """`y = x Wᵀ + b` over any number of positions between batch and features."""

    unbatched_ndim = 1

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def fused(self, x: Tensor, batch: int) -> bool:
        outputs, inputs = self.module.weight.shape
        return not forms.gram_is_cheaper(x.numel() // x.shape[-1] // batch, inputs, outputs)

    def squares(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        return forms.gram_squares(x.reshape(batch, -1, x.shape[-1]), d.reshape(batch, -1, d.shape[-1]))

    def squares_elements(self, x: Tensor, batch: int) -> int:
        return 3 * (x.numel() // x.shape[-1] // batch) ** 2

    def samples(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        return d.reshape(batch, -1, d.shape[-1]).mT @ x.reshape(batch, -1, x.shape[-1])

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        return d.reshape(batch, -1, d.shape[-1]).sum(1, dtype=forms.norm_dtype(d.dtype))


class TransposedLinearRule(LinearRule):
    """transformers' `Conv1D`: a linear layer whose weight is `[in, out]`."""

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])

    def samples(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        return super().samples(d, x, batch)


class ConvRule(Rule):
    """Convolutions of one to three dimensions, any stride, padding, padding mode, dilation and groups."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.spatial = len(module.kernel_size)
        self.unbatched_ndim = self.spatial + 1
        self.operator: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        before, after = self._paddings()
        self.pad_first = module.padding_mode != "zeros" or before != after
        self.pads = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
        self.padding = [0] * self.spatial if self.pad_first else before
        self.geometry = (module.stride, self.padding, module.dilation)
        self.pointwise = math.prod(module.kernel_size) == 1 and module.groups == 1 and not any(self.padding)

    def _paddings(self) -> tuple[list[int], list[int]]:
        m = self.module
        if m.padding == "valid":
            return [0] * self.spatial, [0] * self.spatial
        if m.padding == "same":
            total = [r * (k - 1) for k, r in zip(m.kernel_size, m.dilation, strict=True)]
            return [t // 2 for t in total], [t - t // 2 for t in total]
        return list(m.padding), list(m.padding)

    def prepare(self, x: Tensor) -> Tensor:
        x = super().prepare(x)
        if self.pad_first:
            mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
            x = F.pad(x, self.pads, mode=mode)
        return x

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.operator(x, weight, bias, *self.geometry, self.module.groups)

    def _operands(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return x, d

    def _positions(self, x: Tensor) -> int:
        sizes = zip(x.shape[2:], self.module.kernel_size, *self.geometry, strict=True)
        return math.prod((n + 2 * p - r * (k - 1) - 1) // s + 1 for n, k, s, p, r in sizes)

    def fused(self, x: Tensor, batch: int) -> bool:
        weight = self.module.weight
        groups = self.module.groups
        inputs, outputs = weight[0].numel(), weight.shape[0] // groups
        return x.shape[0] != batch or not forms.gram_is_cheaper(self._positions(x), inputs, outputs)

    def squares(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        if x.shape[0] != batch:
            return forms.squared_norms(self.samples(x, d, batch))
        x, d = self._operands(x, d)
        groups = self.module.groups
        columns = forms.windows(x, self.module.kernel_size, *self.geometry)
        positions = columns.shape[-1]
        columns = columns.reshape(batch, groups, -1, positions).mT
        return forms.gram_squares(columns, d.reshape(batch, groups, -1, positions).mT).sum(1)

    def squares_elements(self, x: Tensor, batch: int) -> int:
        positions = self._positions(x)
        return self.module.weight[0].numel() * self.module.groups * positions + 3 * positions**2

    def samples(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        x, d = self._operands(x, d)
        weight = self.module.weight.detach()
        if self.pointwise:
            for axis, stride in enumerate(self.module.stride, start=2):
                x = x[(slice(None),) * axis + (slice(None, None, stride),)]
            each = (d.flatten(2) @ x.flatten(2).mT).view(x.shape[0], *weight.shape)
        else:
            each = forms.conv_samples(x, d, weight, *self.geometry, self.module.groups)
        return each if x.shape[0] == batch else each.view(batch, -1, *weight.shape).sum(1)

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        each = d.flatten(2).sum(2, dtype=forms.norm_dtype(d.dtype))
        return each.view(batch, -1, each.shape[1]).sum(1)


class TransposedConvRule(ConvRule):
    """Transposed convolutions: the convolution's weight gradient with input and output derivative exchanged."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.operator = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1]
        # The derivative is padded here, so that what output_padding added leaves as many positions as the input has.
        extra = zip(reversed(module.padding), reversed(module.output_padding), strict=True)
        self.derivative_pads = [pad for p, more in extra for pad in (p, p - more)]

    def _paddings(self) -> tuple[list[int], list[int]]:
        return [0] * self.spatial, [0] * self.spatial

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        m = self.module
        return self.operator(x, weight, bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)

    def _operands(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(d, self.derivative_pads), x

    def _positions(self, x: Tensor) -> int:
        return math.prod(x.shape[2:])


class EmbeddingRule(Rule):
    """`nn.Embedding`; its input are indices, `[batch, ...]`."""

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        m = self.module
        return F.embedding(x, weight, m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)

    def _rows(self, x: Tensor, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        ids, d = x.reshape(batch, -1), d.reshape(batch, -1, d.shape[-1])
        if self.module.padding_idx is not None:
            d = d.masked_fill((ids == self.module.padding_idx).unsqueeze(-1), 0)
        return ids, d

    def squares(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        return forms.embedding_squares(*self._rows(x, d, batch))

    def samples(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        ids, d = self._rows(x, d, batch)
        each = d.new_zeros(batch, *self.module.weight.shape)
        return each.scatter_add_(1, ids.unsqueeze(-1).expand_as(d), d)
