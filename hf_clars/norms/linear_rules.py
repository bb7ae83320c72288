"""Rules of linear maps: matrix products, convolutions and their transposes, embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import forms
from .rule import Rule, Saved


@dataclass(frozen=True)
class LinearRule(Rule):
    """`y = x Wᵀ + b` over any number of positions between batch and features, or `y = x W + b` (`transposed`)."""

    transposed: bool = False

    unbatched_ndim = 1

    def _positions(self, x: Tensor, batch: int) -> int:
        return x.numel() // x.shape[-1] // batch

    def fused(self, x: Tensor, batch: int) -> bool:
        outputs, inputs = self.shape
        return not forms.gram_is_cheaper(self._positions(x, batch), inputs, outputs)

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        (x,) = xs
        if not forms.gram_is_cheaper(self._positions(x, batch), *self.shape):
            return None
        return forms.gram_squares(x.reshape(batch, -1, x.shape[-1]), d.reshape(batch, -1, d.shape[-1]))

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        return 3 * self._positions(xs[0], batch) ** 2

    def samples(self, xs: Saved, d: Tensor, batch: int, out: Tensor | None = None) -> Tensor:
        (x,) = xs
        left, right = (x, d) if self.transposed else (d, x)
        left, right = (t.reshape(batch, -1, t.shape[-1]) for t in (left, right))
        return forms.products(left.mT, right, out)

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        return d.reshape(batch, -1, d.shape[-1]).sum(1, dtype=forms.norm_dtype(d.dtype))

    def merge(self, uses: list[tuple[Saved, Tensor]], batch: int) -> tuple[Saved, Tensor] | None:
        xs = torch.cat([x.reshape(batch, -1, x.shape[-1]) for (x,), _ in uses], dim=1)
        return (xs,), torch.cat([d.reshape(batch, -1, d.shape[-1]) for _, d in uses], dim=1)


@dataclass(frozen=True)
class ConvRule(Rule):
    """Convolutions of one to three dimensions, any stride, padding, dilation and groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def unbatched_ndim(self) -> int:  # type: ignore[override]
        return len(self.shape) - 1

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def pointwise(self) -> bool:
        return math.prod(self.kernel) == 1 and self.groups == 1 and not any(self.padding)

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding, dilation of the convolution whose weight gradient this is."""
        return self.stride, self.padding, self.dilation

    def _operands(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return x, d

    def _positions(self, x: Tensor) -> int:
        sizes = zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return math.prod([(n + 2 * p - r * (k - 1) - 1) // s + 1 for n, k, s, p, r in sizes])

    def _gram(self, x: Tensor, batch: int) -> bool:
        inputs, outputs = math.prod(self.shape[1:]), self.shape[0] // self.groups
        return x.shape[0] == batch and forms.gram_is_cheaper(self._positions(x), inputs, outputs)

    def fused(self, x: Tensor, batch: int) -> bool:
        return not self._gram(x, batch)

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        if not self._gram(xs[0], batch):
            return None
        x, d = self._operands(xs[0], d)
        columns = forms.windows(x, self.kernel, *self.geometry)
        positions = columns.shape[-1]
        columns = columns.reshape(batch, self.groups, -1, positions).mT
        return forms.gram_squares(columns, d.reshape(batch, self.groups, -1, positions).mT).sum(1)

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        positions = self._positions(xs[0])
        return math.prod(self.shape[1:]) * self.groups * positions + 3 * positions**2

    def samples(self, xs: Saved, d: Tensor, batch: int, out: Tensor | None = None) -> Tensor:
        x, d = self._operands(xs[0], d)
        if self.pointwise:  # and then nothing is padded
            for axis, stride in enumerate(self.stride, start=2):
                x = x[(slice(None),) * axis + (slice(None, None, stride),)]
            each = forms.products(d.flatten(2), x.flatten(2).mT, out).view(x.shape[0], *self.shape)
        else:
            each = forms.conv_samples(x, d, self.shape, *self.geometry, self.groups)
        return each if x.shape[0] == batch else each.view(batch, -1, *self.shape).sum(1)

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        each = d.flatten(2).sum(2, dtype=forms.norm_dtype(d.dtype))
        return each.view(batch, -1, each.shape[1]).sum(1)


@dataclass(frozen=True)
class TransposedConvRule(ConvRule):
    """Transposed convolutions: the convolution's weight gradient with input and output derivative exchanged."""

    output_padding: tuple[int, ...] = ()

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding, dilation of the convolution whose weight gradient this is."""
        return self.stride, (0,) * len(self.kernel), self.dilation

    def _operands(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        # Padded here, so that what output_padding added leaves as many positions as the input has.
        extra = zip(reversed(self.padding), reversed(self.output_padding), strict=True)
        return F.pad(d, [pad for p, more in extra for pad in (p, p - more)]), x

    def _positions(self, x: Tensor) -> int:
        return math.prod(x.shape[2:])


@dataclass(frozen=True)
class EmbeddingRule(Rule):
    """Rows picked from a table; the input are indices, `[batch, …]`."""

    padding_idx: int = -1

    folded_ndim = 1

    def _rows(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        ids, d = xs[0].reshape(batch, -1), d.reshape(batch, -1, d.shape[-1])
        if self.padding_idx >= 0:
            d = d.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0)
        return ids, d

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        return forms.embedding_squares(*self._rows(xs, d, batch))

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        return 2 * d.numel() // batch

    def samples(self, xs: Saved, d: Tensor, batch: int, out: Tensor | None = None) -> Tensor:
        ids, d = self._rows(xs, d, batch)
        each = d.new_zeros(batch, *self.shape)
        return each.scatter_add_(1, ids.unsqueeze(-1).expand_as(d), d)

    def merge(self, uses: list[tuple[Saved, Tensor]], batch: int) -> tuple[Saved, Tensor] | None:
        ids = torch.cat([ids.reshape(batch, -1) for (ids,), _ in uses], dim=1)
        return (ids,), torch.cat([d.reshape(batch, -1, d.shape[-1]) for _, d in uses], dim=1)

    def inner(self, xs: Saved, d: Tensor, other: Rule, other_xs: Saved, other_d: Tensor, batch: int) -> Tensor | None:
        if type(other) is not LinearRule or other.transposed:
            return None
        # ⟨c_i, c'_i⟩ = Σ_{t,q} ⟨d_t, x_q⟩ d'_{q, id_t}
        ids, d = self._rows(xs, d, batch)
        x = other_xs[0].reshape(batch, -1, other_xs[0].shape[-1])
        other_d = other_d.reshape(batch, -1, other_d.shape[-1])
        picked = other_d.gather(2, ids.unsqueeze(1).expand(-1, other_d.shape[1], -1))
        dtype = forms.norm_dtype(d.dtype)
        return ((x.to(dtype) @ d.to(dtype).mT) * picked.to(dtype)).sum((1, 2))


@dataclass(frozen=True)
class PositionsRule(EmbeddingRule):
    """Rows picked from a table by indices that are the same for all samples, of which each is handed its own copy."""

    def _own(self, xs: Saved, d: Tensor, batch: int) -> Saved:
        (ids,) = xs
        each = ids.numel() * d.shape[-1] == d.numel()  # cut or merged before, and then each sample's own already
        return (ids.reshape(batch, -1) if each else ids.reshape(1, -1).expand(batch, -1),)

    def cut(self, xs: Saved, d: Tensor, run: slice, batch: int) -> tuple[Saved, Tensor]:
        return super().cut(self._own(xs, d, batch), d, run, batch)

    def _rows(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        return super()._rows(self._own(xs, d, batch), d, batch)

    def merge(self, uses: list[tuple[Saved, Tensor]], batch: int) -> tuple[Saved, Tensor] | None:
        return super().merge([(self._own(xs, d, batch), d) for xs, d in uses], batch)
