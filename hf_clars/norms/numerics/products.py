"""Batches of matrix products: how they are multiplied, and summed up with their squared norms.

`multiply_and_sum` is everything that a per-sample gradient is needed for; on a GPU, `kernels/` do it without one.
"""

import torch
from torch import Tensor

from .costs import CACHED, OF_AMD, WIDE
from .reductions import squared_norms, sum_of_samples

# A private operator, which torch.compile's code calls for linear layers; test_norms_products.py fails if it goes. On
# AMD's processors with AVX-512 it is twice as fast as MKL, which does not use AVX-512 there.
_SERVES = WIDE and OF_AMD and torch.backends.mkldnn.is_available()
ONE_DNN = torch.ops.mkldnn._linear_pointwise if _SERVES else None
# From such a product on, a call for each costs less than MKL's loop over all.
_LARGE_RESULT = 1 << 18 if ONE_DNN is None else 1 << 13  # elements
_LARGE_PRODUCT = 1 << 20  # multiply-adds


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """`left [B, O, P]`, `right [B, P, I]` → `[B, O, I]`."""
    if not one_by_one(left, right):
        return torch.bmm(left, right)
    each = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    for a, b, out in zip(left.unbind(), right.unbind(), each.unbind(), strict=True):
        out.copy_(_product(a, b, out))
    return each


def multiply_and_sum(left: Tensor, right: Tensor, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """`‖left_i right_i‖²`, `[B]`; and `total + Σ_i left_i right_i`.

    `left [B, O, P]`, `right [B, P, I]`, `total [O, I]`, contiguous and of the dtype of norms; it may be changed. On a
    CPU the products stand in one buffer, a few at a time, that stays in the cache.
    """
    batch, outputs, inputs = left.shape[0], left.shape[1], right.shape[2]
    cpu = left.device.type == "cpu"
    size = max(1, CACHED // (outputs * inputs * left.dtype.itemsize)) if cpu else batch
    if cpu and left.dtype == torch.float32 == right.dtype and (size == 1 or one_by_one(left, right)):
        return _one_after_another(left, right, total)
    if size >= batch:
        each = torch.bmm(left, right)
        return squared_norms(each), sum_of_samples(each, total)
    buffer, squares = left.new_empty(size, outputs, inputs), []
    for a, b in zip(left.split(size), right.split(size), strict=True):
        each = torch.bmm(a, b, out=buffer[: a.shape[0]])
        squares.append(squared_norms(each))
        total = sum_of_samples(each, total)
    assert total is not None
    return torch.cat(squares), total


def one_by_one(left: Tensor, right: Tensor) -> bool:
    """Whether each product is a call of its own, and only one of them is held: large ones on a CPU."""
    if left.device.type != "cpu" or left.dtype != torch.float32 or right.dtype != torch.float32:
        return False
    result = left.shape[1] * right.shape[2]
    return result >= _LARGE_RESULT and result * left.shape[2] >= _LARGE_PRODUCT


def _one_after_another(left: Tensor, right: Tensor, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `multiply_and_sum`, in float32."""
    buffer, squares = left.new_empty(left.shape[1], right.shape[2]), []
    for a, b in zip(left.unbind(), right.unbind(), strict=True):
        each = _product(a, b, buffer)
        row = each.view(-1)
        squares.append(torch.dot(row, row))
        total = each.clone() if total is None else total.add_(each)
    assert total is not None
    return torch.stack(squares), total


def _product(left: Tensor, right: Tensor, buffer: Tensor) -> Tensor:
    """It may stand in the buffer."""
    if ONE_DNN is None:
        return torch.mm(left, right, out=buffer)
    return ONE_DNN(left, right.T, None, "none", [], "")
