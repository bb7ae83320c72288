"""Per-sample weight gradients of linear maps: plain tensor functions, no modules, no autograd.

`x` is what the layer was given, `d` the derivative of the batch loss with respect to what it returned. With `P`
positions a sample (pixels, tokens), the weight gradient of sample i is a sum over positions of outer products. There
are two ways to its norm, each in variants that `costs.py` chooses from:

* form `c_i` itself, take its norm, add it to the total. Summed over samples it *is* the weight gradient, so this costs
  no arithmetic beyond what the backward pass does anyway, only the traffic of writing and reading `c_i`.
* Gram: `‖c_i‖² = Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`, cheaper where positions are few against channels. What cancels in
  `c_i` cancels twice as far here. With inputs far from zero and derivatives that sum to zero over positions, as those
  of attention's keys do, rounding may be all that is left. So the result is held against what it was summed up from,
  and `c_i` is formed if it is too small. A device would have to be waited for: there it is formed at once, unless
  `kernels/gram.py` serves, which decides on the device.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import products
from .reductions import cancels, norm_dtype, squared_norms


def has_gram(device: torch.device, positions: int) -> bool:
    """Whether a Gram form is taken there: of one position, nothing cancels."""
    return positions == 1 or device.type == "cpu"


def gram_squares(x: Tensor, d: Tensor) -> Tensor | None:
    """`x [B, P, I]`, `d [B, P, O]` → `[B]`: `Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`; None where it cancels."""
    if x.shape[1] == 1:
        dtype = norm_dtype(d.dtype)
        return squared_last(x, dtype) * squared_last(d, dtype)
    return _inner(_gram(x), _gram(d))


def pixel_gram_squares(
    x: Tensor, d: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor | None:
    """`‖c_i‖²` of a convolution by the Gram form, without its windows: `x [B, C, *S]`, `d [B, O, *P]` → `[B]`; None
    where it cancels.

    The product of the windows at p and q is a sum over kernel taps t of products of two pixels,
    `Σ_t ⟨x_{sp+rt}, x_{sq+rt}⟩`: along diagonals of the Gram matrix of all pixels, one axis after the other.
    """
    size, positions, axes = x.shape[2:], d.shape[2:], len(kernel)
    gram = _gram(x.flatten(2).mT).view(-1, *size, *size)
    gram = F.pad(gram, [p for p in reversed((*padding, *padding)) for _ in range(2)])
    for axis, (k, s, r, n) in enumerate(zip(kernel, stride, dilation, positions, strict=True), start=1):
        taps = [slice(r * t, r * t + s * (n - 1) + 1, s) for t in range(k)]
        before, between = (slice(None),) * axis, (slice(None),) * (axes - 1)
        gram = functools.reduce(torch.add, [gram[(*before, tap, *between, tap)] for tap in taps])
    return _inner(gram, _gram(d.flatten(2).mT))


def _gram(x: Tensor) -> Tensor:
    """`[B, P, I] → [B, P, P]`: `⟨x_p, x_q⟩`."""
    # Before they are squared: with a loss scale in d, its squares leave float16's range in both directions.
    x = x.to(norm_dtype(x.dtype)) if x.dtype.itemsize < 4 else x
    return products.multiply(x, x.mT)


def _inner(left: Tensor, right: Tensor) -> Tensor | None:
    """`Σ left ⊙ right` of each sample's two Gram matrices; None where it cancels. The first one may be changed."""
    terms = left.reshape(right.shape).mul_(right)
    squares = terms.sum((1, 2))
    # On the diagonal are ‖d_p x_pᵀ‖². Errors are found to be at most five roundings of their sum, however it cancels.
    return None if cancels(squares, terms.diagonal(dim1=1, dim2=2).sum(1)) else squares


def squared_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`[..., 1, N] → [...]`: squared norms over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=dtype).square().squeeze(-1)


def windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """im2col in any number of dimensions: `[B, C, *spatial] → [B, C, K, P]`, K kernel taps and P positions."""
    spatial = len(kernel)
    x = F.pad(x, [p for size in reversed(padding) for p in (size, size)])
    for axis, (k, s, r) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, r * (k - 1) + 1, s)[..., ::r]
    taps = tuple(range(2 + spatial, 2 + 2 * spatial))
    x = x.permute(0, 1, *taps, *range(2, 2 + spatial))
    return x.reshape(*x.shape[:2], math.prod(kernel), -1)


def windows_of_pixels(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The same for images that have their channels last, and so that they stay last: `[B, C, H, W] → [B, P, K·C]`."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    for axis, (k, s, r) in enumerate(zip(kernel, stride, dilation, strict=True), start=1):
        x = x.unfold(axis, r * (k - 1) + 1, s)[..., ::r]
    return x.permute(0, 1, 2, 4, 5, 3).reshape(x.shape[0], x.shape[1] * x.shape[2], -1)


def conv_samples(
    x: Tensor,
    d: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`c_i` of a convolution with weights of `shape`, `[B, *shape]`, any stride, padding, dilation and groups.

    The samples are laid side by side as groups of one image, so that one call gives all their weight gradients.
    """
    batch = x.shape[0]
    x = x.reshape(1, -1, *x.shape[2:])
    d = d.reshape(1, -1, *d.shape[2:])
    # Only its shape is looked at; but on a CPU it is made contiguous, which for an expanded number is a copy.
    size = batch * shape[0], *shape[1:]
    weight = x.new_empty(size) if x.device.type == "cpu" else x.new_empty(()).expand(size)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        d, x, weight, None, stride, padding, dilation, False, [0] * len(stride), batch * groups, [False, True, False]
    )
    return gradient.view(batch, *shape)


def depthwise_samples(
    x: Tensor,
    d: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`c_i` of a depthwise convolution in one or two dimensions, `[B, *shape]`, by products of rows of pixels.

    Windows are taken along the last axis only: `products[y, (y', t)] = Σ_x d[y, x] · x[y', s·x + r·t]` for all pairs of
    rows is one matrix product, and tap (u, t) of the kernel is the sum over y of the entries at `y' = s·y + r·u`.
    """
    if len(shape) == 3:
        x, d, shape, stride, padding, dilation = _one_row(x, d, shape, stride, padding, dilation)
    batch, channels = x.shape[:2]
    (rows, columns), (down, across) = d.shape[2:], shape[2:]
    x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]]).contiguous()
    d = d.contiguous()  # of channels-last images, views are what bmm takes slice by slice
    taps = x.unfold(3, stride[1] * (columns - 1) + 1, dilation[1])[:, :, :, :across, :: stride[1]]
    right = taps.reshape(batch * channels, -1, columns).mT
    products = torch.bmm(d.reshape(batch * channels, -1, columns), right)
    multiplier, height = shape[0] // channels, products.shape[2]
    size = batch * channels, multiplier, rows, down, across
    steps = products.stride(0), rows * height, height + stride[0] * across, dilation[0] * across, 1
    return products.as_strided(size, steps).sum(2, dtype=norm_dtype(d.dtype)).view(batch, shape[0], 1, down, across)


def depthwise_taps(
    x: Tensor,
    d: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`c_i` of a depthwise convolution in one or two dimensions with as many outputs as inputs, `[B, K, O]`, one tap
    after the other.

    Tap t gets `Σ_p d_p x_{s·p + r·t}`, summed over positions side by side for all samples and channels, which are
    brought last for it.
    """
    if len(shape) == 3:
        x, d, shape, stride, padding, dilation = _one_row(x, d, shape, stride, padding, dilation)
    (batch, channels), dtype = x.shape[:2], norm_dtype(d.dtype)
    (rows, columns), (down, across) = d.shape[2:], shape[2:]
    x = F.pad(x.to(dtype).permute(2, 3, 0, 1), (0, 0, 0, 0, padding[1], padding[1], padding[0], padding[0]))
    x = x.reshape(*x.shape[:2], batch * channels).contiguous()
    d = d.to(dtype).permute(2, 3, 0, 1).reshape(rows, columns, batch * channels).contiguous()
    taps, product = d.new_empty(batch, down * across, channels), torch.empty_like(d)
    for tap, of_tap in enumerate(taps.unbind(1)):
        y, z = dilation[0] * (tap // across), dilation[1] * (tap % across)
        seen = x[y : y + stride[0] * (rows - 1) + 1 : stride[0], z : z + stride[1] * (columns - 1) + 1 : stride[1]]
        torch.mul(seen, d, out=product)
        torch.sum(product.view(rows * columns, batch, -1), 0, out=of_tap)
    return taps


def _one_row(
    x: Tensor, d: Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, Tensor, Sequence[int], Sequence[int], Sequence[int], Sequence[int]]:
    """A convolution in one dimension as one of images of one row."""
    images = x.unsqueeze(2), d.unsqueeze(2)
    return *images, (*shape[:2], 1, shape[2]), (1, *stride), (0, *padding), (1, *dilation)


def embedding_squares(ids: Tensor, d: Tensor) -> Tensor:
    """Squared norms of an embedding's `c_i`: `ids [B, T]`, `d [B, T, N]` → `[B]`.

    Rows of `d` that share an id add up before they are squared. Sorting the ids makes them neighbours, so the sums
    have at most T rows a sample, however large the vocabulary; no shape depends on the data.
    """
    batch, length = ids.shape
    ids, order = ids.sort(dim=1)
    d = d.gather(1, order.unsqueeze(-1).expand_as(d)).to(norm_dtype(d.dtype))
    starts = torch.ones_like(ids)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    row = starts.cumsum(1) - 1 + torch.arange(batch, device=ids.device).unsqueeze(1) * length
    sums = torch.zeros_like(d).flatten(0, 1).index_add_(0, row.flatten(), d.flatten(0, 1))
    return squared_norms(sums.view(batch, -1))
