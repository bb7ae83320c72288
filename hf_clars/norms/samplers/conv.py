"""Samplers of convolutions and transposed convolutions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..numerics import costs, forms, products
from ..numerics.reductions import norm_dtype, squared_norms, sum_of_samples
from .base import Sampler, Saved

# On a CPU a convolution that sees one sample alone beats one that has samples as groups of fewer channels than this, if
# it is not too small for a call of its own.
_FEW_CHANNELS = 8
_LARGE = 1 << 20  # multiply-adds


@dataclass(frozen=True)
class ConvSampler(Sampler):
    """Convolutions of one to three dimensions, any stride, padding, dilation and groups.

    Args:
        form: how to measure: "products", "grouped", "rows", "taps" or "gram", see `costs.py`.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    form: str = ""

    def for_size(self, size: Sequence[int]) -> ConvSampler:
        """The same, with the cheapest form for inputs of this size."""
        choose = _for_size.__wrapped__ if torch.compiler.is_compiling() else _for_size  # which follows no caches
        return choose(self, tuple(size))

    @property
    def unbatched_ndim(self) -> int:  # type: ignore[override]
        return len(self.shape) - 1

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def pointwise(self) -> bool:
        return math.prod(self.kernel) == 1 and not any(self.padding)

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding, dilation of the convolution whose weight gradient this is."""
        return self.stride, self.padding, self.dilation

    def _operands(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Input and output derivative of that convolution."""
        return x, d

    def _sizes(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        """Positions and pixels along each axis of that convolution, for inputs of `size`."""
        pixels = list(size)
        sizes = zip(pixels, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * p - r * (k - 1) - 1) // s + 1 for n, k, s, p, r in sizes], pixels

    def fused(self, x: Tensor, batch: int) -> bool:
        kernel = self._cuda_kernel(x, batch)
        return kernel != "gram" if kernel else not self._gram(x, batch)

    def forms_weight(self) -> bool:
        return True

    @property
    def is_product(self) -> bool:
        return self.pointwise and self.groups == 1

    def at_positions(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        left, right, _ = self._matrices(xs, d, batch)
        return right, left.mT

    def _cuda_kernel(self, x: Tensor, batch: int) -> str:
        if len(self.kernel) > 2 or not kernels.serves(x.device, x.dtype, convolution=True):
            return ""
        positions = math.prod(self._sizes(x.shape[2:])[0])
        return kernels.choose(x, self.shape, positions, self.groups, x.shape[0] // batch, convolution=True)

    def convolution(self, xs: Saved, d: Tensor, batch: int) -> kernels.Convolution | None:
        name = self._cuda_kernel(xs[0], batch)
        if not name or xs[0].dtype != d.dtype:
            return None
        x, d = self._operands(xs[0], d)
        (outputs, channels, *kernel), (stride, padding, dilation) = self.shape, self.geometry
        if len(kernel) == 1:  # pixels of one row
            x, d, kernel = x.unsqueeze(2), d.unsqueeze(2), [1, *kernel]
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        return kernels.Convolution(x, d, (outputs, channels, *kernel), stride, padding, dilation, self.groups, name)

    def _gram(self, x: Tensor, batch: int) -> bool:
        if self.form != "gram" or x.shape[0] != batch:  # several rows of a sample have products with each other
            return False
        return forms.has_gram(x.device, math.prod(self._sizes(x.shape[2:])[0]))

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        if not self._gram(xs[0], batch):
            return None
        x, d = self._operands(xs[0], d)
        if self.groups > 1:
            x, d = (t.reshape(batch * self.groups, -1, *t.shape[2:]) for t in (x, d))
        if self.pointwise:
            squares = forms.gram_squares(self._strided(x).flatten(2).mT, d.flatten(2).mT)
        else:
            squares = forms.pixel_gram_squares(x, d, self.kernel, *self.geometry)
        return squares if squares is None or self.groups == 1 else squares.view(batch, self.groups).sum(1)

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        positions, pixels = self._sizes(xs[0].shape[2:])
        if self.pointwise:
            return 2 * self.groups * math.prod(positions) ** 2
        padded = math.prod([n + 2 * p for n, p in zip(pixels, self.geometry[1], strict=True)])
        return 2 * self.groups * (padded**2 + math.prod(positions) ** 2)

    def samples_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        elements = math.prod(self.shape)
        if self.form == "rows":
            rows, columns, height = self._rows(xs[0].shape[2:])
            elements += self.groups * height * columns + self.shape[0] * rows * height
        if self.form == "taps":
            positions, pixels = self._sizes(xs[0].shape[2:])
            padded = math.prod([n + 2 * p for n, p in zip(pixels, self.geometry[1], strict=True)])
            elements += self.groups * padded + 2 * self.shape[0] * math.prod(positions)
        if self.form == "products" and not self.pointwise:
            elements += math.prod(self.shape[1:]) * math.prod(self._sizes(xs[0].shape[2:])[0])
        return elements

    def _rows(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Rows and columns of positions, and rows of padded pixels times the taps of a row: what "rows" multiplies."""
        positions, pixels = self._sizes(size)
        pad = self.geometry[1]
        height = pixels[0] + 2 * pad[0] if len(positions) == 2 else 1
        return (positions[0] if len(positions) == 2 else 1), positions[-1], height * self.kernel[-1]

    def alone(self, d: Tensor) -> bool:
        if self.form != "grouped" or self.groups > 1 or self.shape[1] >= _FEW_CHANNELS or d.device.type != "cpu":
            return False
        return math.prod(self.shape) * d[0, 0].numel() >= _LARGE

    def _strided(self, x: Tensor) -> Tensor:
        if max(self.stride) == 1:
            return x
        steps: tuple[Any, ...] = (..., *(slice(None, None, stride) for stride in self.stride))
        return x[steps]

    def _matrices(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor, bool]:
        """`left [batch, O, P]` and `right [batch, P, I]`, whose products are `c_i` as matrices; and whether channels
        come behind kernel taps in I, as in images that have them last."""
        x, d = self._operands(xs[0], d)
        left, last = d.flatten(2), not self.pointwise and _is_channels_last(x)
        if self.pointwise:
            right = self._strided(x).flatten(2).mT
        elif last:
            right = forms.windows_of_pixels(x, self.kernel, *self.geometry)
        else:
            right = forms.windows(x, self.kernel, *self.geometry).flatten(1, 2).mT
        if x.shape[0] > batch:  # several rows of one sample are as good as more positions
            left = left.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
            right = right.unflatten(0, (batch, -1)).flatten(1, 2)
        return left, right, last

    def _weights(self, matrices: Tensor, last: bool) -> Tensor:
        """Products of `_matrices`, `[..., O, I]`, as weights."""
        if not last:
            return matrices.unflatten(-1, self.shape[1:])
        return matrices.unflatten(-1, (*self.kernel, self.shape[1])).movedim(-1, -1 - len(self.kernel))

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        if self.form == "products" or (self.form == "gram" and self.pointwise and self.groups == 1):
            left, right, last = self._matrices(xs, d, batch)
            return self._weights(products.multiply(left, right), last)
        x, d = self._operands(xs[0], d)
        if self.form == "taps":
            return self._of_taps(self._taps(x, d, batch))
        if self.form == "rows":
            each = forms.depthwise_samples(x, d, self.shape, *self.geometry).view(-1, *self.shape)
        else:
            each = forms.conv_samples(x, d, self.shape, *self.geometry, self.groups)
        return each if x.shape[0] == batch else each.view(batch, -1, *self.shape).sum(1)

    def _taps(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        """`c_i`, `[batch, K, O]`."""
        taps = forms.depthwise_taps(x, d, self.shape, *self.geometry)
        return taps if x.shape[0] == batch else taps.unflatten(0, (batch, -1)).sum(1)

    def _of_taps(self, taps: Tensor) -> Tensor:
        """From `[..., K, O]` to weights."""
        return taps.mT.unflatten(-1, self.shape[1:])

    def sum_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        buffered = self.form == "products" and self.pointwise and d.device.type == "cpu"
        return 0 if buffered else self.samples_elements(xs, d, batch)

    def squares_and_sum(self, xs: Saved, d: Tensor, batch: int, total: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.form == "products":
            left, right, last = self._matrices(xs, d, batch)
            squares, matrix = products.multiply_and_sum(left, right, None)
            weights = self._weights(matrix, last)
            return squares, weights if total is None else total.add_(weights)
        if self.form == "taps":
            taps = self._taps(*self._operands(xs[0], d), batch)
            weights = self._of_taps(sum_of_samples(taps))
            return squared_norms(taps), weights if total is None else total.add_(weights)
        return super().squares_and_sum(xs, d, batch, total)

    def total(self, xs: Saved, d: Tensor) -> Tensor | None:
        x, d = self._operands(xs[0], d)
        if x.dtype != d.dtype:
            return None
        weight = x.new_empty(self.shape)
        stride, padding, dilation = self.geometry
        return torch.ops.aten.convolution_backward(
            d, x, weight, None, stride, padding, dilation, False, [0] * len(stride), self.groups, [False, True, False]
        )[1]

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        each = d.flatten(2).sum(2, dtype=norm_dtype(d.dtype))
        return each.view(batch, -1, each.shape[1]).sum(1)


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours, and enough of them to be moved together."""
    return x.ndim == 4 and x.stride(1) == 1 and x.shape[1] >= _FEW_CHANNELS and max(x.shape[2:]) > 1


@dataclass(frozen=True)
class TransposedConvSampler(ConvSampler):
    """Transposed convolutions: the convolution's weight gradient with input and output derivative exchanged."""

    output_padding: tuple[int, ...] = ()

    @property
    def is_product(self) -> bool:
        return False

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding, dilation of the convolution whose weight gradient this is."""
        return self.stride, (0,) * len(self.kernel), self.dilation

    def _operands(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        # Padded here, so that what output_padding added leaves as many positions as the input has.
        extra = zip(reversed(self.padding), reversed(self.output_padding), strict=True)
        return F.pad(d, [pad for p, more in extra for pad in (p, p - more)]), x

    def _sizes(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        positions = list(size)
        sizes = zip(positions, self.kernel, self.stride, self.dilation, strict=True)
        return positions, [s * (n - 1) + r * (k - 1) + 1 for n, k, s, r in sizes]


@functools.lru_cache(maxsize=4096)
def _for_size(sampler: ConvSampler, size: tuple[int, ...]) -> ConvSampler:
    positions, pixels = map(math.prod, sampler._sizes(size))
    layer = costs.Convolution(sampler.shape, sampler.groups, positions, pixels, sampler.pointwise)
    prices = {"grouped": layer.grouped(), "gram": layer.gram()}
    if sampler.groups == 1:
        prices["products"] = layer.products()
    elif sampler.shape[1] == 1 and len(sampler.kernel) < 3:
        if sampler.shape[0] == sampler.groups:
            prices["taps"] = layer.taps()
        narrow = True in [n < k for n, k in zip(sampler._sizes(size)[1], sampler.kernel, strict=True)]
        if sampler.kernel[-1] > 3 or narrow:
            prices["grouped"] = layer.grouped_depthwise()
        if sampler.kernel[-1] > 3:
            prices["rows"] = layer.rows(*sampler._rows(size), strided=sampler.geometry[0][-1] > 1)
    cheapest = "grouped"
    for form, price in prices.items():  # `min` with a key is nothing that torch.compile follows where sizes may change
        if price < prices[cheapest]:
            cheapest = form
    return replace(sampler, form=cheapest)
