"""Per-sample weight gradients of linear maps: plain tensor functions, no modules, no autograd.

`x` is what the layer was given, `d` the derivative of the batch loss with respect to what it returned. With `P`
positions a sample (pixels, tokens), the weight gradient of sample i is a sum over positions of outer products. There
are two ways to its norm:

* products: form `c_i` itself, take its norm, add it to the total. Summed over samples it *is* the weight gradient, so
  this costs no arithmetic beyond what the backward pass does anyway, only the traffic of writing and reading `c_i`.
* Gram: `‖c_i‖² = Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`, cheaper where positions are few against channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# From here on a CPU's BLAS takes a sample's norm faster than a reduction over all samples does, and more accurately.
_LONG = 1024

# One element of a per-sample gradient is written and read back a few times; that many multiply-adds take as long.
_TRAFFIC = 8


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms are accumulated in: float32 for half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)


def squared_norms(samples: Tensor) -> Tensor:
    """`[B, ...] → [B]`: the squared 2-norm of each sample."""
    rows, dtype = samples.reshape(samples.shape[0], -1), norm_dtype(samples.dtype)
    if samples.device.type == "cpu" and rows.shape[1] >= _LONG:
        rows = rows.to(dtype)
        return torch.stack([torch.dot(row, row) for row in rows])
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).square()


def add_samples_(total: Tensor, samples: Tensor) -> None:
    """`total += Σ_i samples_i`, for `samples [B, *total.shape]`."""
    if samples.device.type == "cpu" and samples.dtype == total.dtype:
        rows = samples.reshape(samples.shape[0], -1)
        total.view(-1).addmv_(rows.T, rows.new_ones(rows.shape[0]))
    else:
        total += samples.sum(0, dtype=total.dtype)


def products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """`left [B, O, P]`, `right [B, P, I]` → `[B, O, I]`, in the memory of `out` if that has B samples."""
    if out is None or out.shape[0] != left.shape[0]:
        return torch.bmm(left, right)
    return torch.bmm(left, right, out=out.view(left.shape[0], left.shape[1], right.shape[2]))


def gram_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether the Gram form beats forming `c_i`, for `inputs × outputs` weights and `positions` a sample.

    Gram: `P² (I + O)` multiply-adds more than the plain weight gradient. Products: none more, but the traffic of
    `I · O` elements.
    """
    return positions * positions * (inputs + outputs) < _TRAFFIC * inputs * outputs


def gram_squares(x: Tensor, d: Tensor) -> Tensor:
    """`x [..., P, I]`, `d [..., P, O]` → `[...]`: `Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`."""
    dtype = norm_dtype(d.dtype)
    if x.shape[-2] == 1:
        return squared_last(x, dtype) * squared_last(d, dtype)
    # Before they are squared: with a loss scale in d, its squares leave float16's range in both directions.
    x, d = x.to(dtype), d.to(dtype)
    return ((x @ x.mT) * (d @ d.mT)).sum((-2, -1)).clamp_min(0)  # rounding can pass zero


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
    weight = x.new_empty(()).expand(batch * shape[0], *shape[1:])  # only its shape is looked at
    _, gradient, _ = torch.ops.aten.convolution_backward(
        d, x, weight, None, stride, padding, dilation, False, [0] * len(stride), batch * groups, [False, True, False]
    )
    return gradient.view(batch, *shape)


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
