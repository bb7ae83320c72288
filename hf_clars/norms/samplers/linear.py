"""Samplers of matrix products and of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..numerics import costs, forms, products
from ..numerics.reductions import norm_dtype
from ..sample_axis.axis import SampleAxis, samples_first
from .base import Sampler, Saved


@dataclass(frozen=True)
class LinearSampler(Sampler):
    """`y = x Wᵀ + b` over any number of positions between batch and features, or `y = x W + b` (`transposed`)."""

    transposed: bool = False

    unbatched_ndim = 1

    def sample_dims(self, ndim: int) -> int:
        return ndim - 1

    def _gram(self, x: Tensor, batch: int) -> bool:
        positions = x.numel() // x.shape[-1] // batch
        if not forms.has_gram(x.device, positions):
            return False
        # Products of halves are rounded each; where they are no faster, autograd's one rounding is the better.
        call = 0 if x.dtype.itemsize >= 4 else 200_000
        return costs.gram(positions, *self.shape) < costs.products(*self.shape) + call

    def fused(self, x: Tensor, batch: int) -> bool:
        kernel = self._cuda_kernel(x, batch)
        return kernel != "gram" if kernel else not self._gram(x, batch)

    def forms_weight(self) -> bool:
        return True

    @property
    def is_product(self) -> bool:
        return not self.transposed

    def at_positions(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        return xs[0].reshape(batch, -1, xs[0].shape[-1]), d.reshape(batch, -1, d.shape[-1])

    def _cuda_kernel(self, x: Tensor, batch: int) -> str:
        if not kernels.serves(x.device, x.dtype, convolution=False):
            return ""
        return kernels.choose(x, self.shape, x.numel() // x.shape[-1] // batch, 1, 1, convolution=False)

    def convolution(self, xs: Saved, d: Tensor, batch: int) -> kernels.Convolution | None:
        name = self._cuda_kernel(xs[0], batch)
        if not name or xs[0].dtype != d.dtype:
            return None
        x, d = (xs[0], d) if not self.transposed else (d, xs[0])
        # Positions are pixels of one row.
        x, d = (t.reshape(batch, 1, -1, t.shape[-1]).permute(0, 3, 1, 2) for t in (x, d))
        return kernels.Convolution(x, d, (*self.shape, 1, 1), (1, 1), (0, 0), (1, 1), 1, name)

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        (x,) = xs
        if not self._gram(x, batch):
            return None
        return forms.gram_squares(x.reshape(batch, -1, x.shape[-1]), d.reshape(batch, -1, d.shape[-1]))

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        return 3 * (d.numel() // d.shape[-1] // batch) ** 2

    def _matrices(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """`left [batch, O, P]` and `right [batch, P, I]`, whose products are `c_i`."""
        left, right = (xs[0], d) if self.transposed else (d, xs[0])
        left, right = (t.reshape(batch, -1, t.shape[-1]) for t in (left, right))
        return left.mT, right

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        return products.multiply(*self._matrices(xs, d, batch))

    def sum_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        return 0 if d.device.type == "cpu" else self.samples_elements(xs, d, batch)

    def squares_and_sum(self, xs: Saved, d: Tensor, batch: int, total: Tensor | None) -> tuple[Tensor, Tensor]:
        return products.multiply_and_sum(*self._matrices(xs, d, batch), total)

    def total(self, xs: Saved, d: Tensor) -> Tensor | None:
        x, d = (t.reshape(-1, t.shape[-1]) for t in (xs[0], d))
        return x.mT @ d if self.transposed else d.mT @ x

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        return d.reshape(batch, -1, d.shape[-1]).sum(1, dtype=norm_dtype(d.dtype))

    def merge(self, uses: list[tuple[Saved, Tensor]], batch: int) -> tuple[Saved, Tensor] | None:
        xs = torch.cat([x.reshape(batch, -1, x.shape[-1]) for (x,), _ in uses], dim=1)
        return (xs,), torch.cat([d.reshape(batch, -1, d.shape[-1]) for _, d in uses], dim=1)


@dataclass(frozen=True)
class EmbeddingSampler(Sampler):
    """Rows picked from a table; the input are indices, `[batch, …]`."""

    padding_idx: int = -1

    def sample_dims(self, ndim: int) -> int:
        return ndim

    def _rows(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        ids, d = xs[0].reshape(batch, -1), d.reshape(batch, -1, d.shape[-1])
        if self.padding_idx >= 0:
            d = d.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0)
        return ids, d

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        return forms.embedding_squares(*self._rows(xs, d, batch))

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        return 2 * d.numel() // batch

    def total(self, xs: Saved, d: Tensor) -> Tensor | None:
        ids, d = self._rows(xs, d, 1)
        return d.new_zeros(self.shape).index_add_(0, ids.flatten(), d.flatten(0, 1))

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        ids, d = self._rows(xs, d, batch)
        each = d.new_zeros(batch, *self.shape)
        return each.scatter_add_(1, ids.unsqueeze(-1).expand_as(d), d)

    def merge(self, uses: list[tuple[Saved, Tensor]], batch: int) -> tuple[Saved, Tensor] | None:
        ids = torch.cat([ids.reshape(batch, -1) for (ids,), _ in uses], dim=1)
        return (ids,), torch.cat([d.reshape(batch, -1, d.shape[-1]) for _, d in uses], dim=1)

    def inner(
        self, xs: Saved, d: Tensor, other: Sampler, other_xs: Saved, other_d: Tensor, batch: int
    ) -> Tensor | None:
        if type(other) is not LinearSampler or other.transposed:
            return None
        # ⟨c_i, c'_i⟩ = Σ_{t,q} ⟨d_t, x_q⟩ d'_{q, id_t}
        ids, d = self._rows(xs, d, batch)
        x = other_xs[0].reshape(batch, -1, other_xs[0].shape[-1])
        other_d = other_d.reshape(batch, -1, other_d.shape[-1])
        picked = other_d.gather(2, ids.unsqueeze(1).expand(-1, other_d.shape[1], -1))
        dtype = norm_dtype(d.dtype)
        return ((x.to(dtype) @ d.to(dtype).mT) * picked.to(dtype)).sum((1, 2))


@dataclass(frozen=True)
class PositionsSampler(EmbeddingSampler):
    """Rows picked from a table by indices that are the same for all samples, of which each is handed its own copy."""

    def samples_first(self, xs: Saved, d: Tensor, axis: SampleAxis) -> tuple[Saved, Tensor]:
        return xs, samples_first(d, axis)

    def total(self, xs: Saved, d: Tensor) -> Tensor | None:
        return None

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
