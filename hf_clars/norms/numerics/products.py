"""Batches of matrix products: how they are multiplied, and summed up with their squared norms.

`multiply_and_sum` is everything that a per-sample gradient is needed for; on a GPU, `kernels/` do it without one.
"""

import torch
from torch import Tensor

from .costs import WIDE
from .reductions import squared_norms, sum_of_samples

# A private operator, which torch.compile's code calls for linear layers; test_norms_products.py fails if it goes. On
# AMD's processors with AVX-512 it is twice as fast as MKL, on Intel's about as fast, and without AVX-512 slower.
ONE_DNN = torch.ops.mkldnn._linear_pointwise if WIDE and torch.backends.mkldnn.is_available() else None
# From such a product on, a call for each costs less than MKL's loop over all.
_LARGE_RESULT = 1 << 18 if ONE_DNN is None else 1 << 13  # elements
_LARGE_PRODUCT = 1 << 20  # multiply-adds


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """`left [B, O, P]`, `right [B, P, I]` → `[B, O, I]`."""
    if not one_by_one(left, right):
        return torch.bmm(left, right)
    each = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    for a, b, out in zip(left.unbind(), right.unbind(), each.unbind(), strict=True):
        _product(a, b, out)
    return each


def multiply_and_sum(left: Tensor, right: Tensor, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """`‖left_i right_i‖²`, `[B]`; and `total + Σ_i left_i right_i`.

    `left [B, O, P]`, `right [B, P, I]`, `total [O, I]`, contiguous and of the dtype of norms; it may be changed.
    """
    if not one_by_one(left, right):
        each = torch.bmm(left, right)
        return squared_norms(each), sum_of_samples(each, total)
    product = left.new_empty(left.shape[1], right.shape[2])
    row, squares = product.view(-1), []
    for a, b in zip(left.unbind(), right.unbind(), strict=True):
        _product(a, b, product)
        squares.append(torch.dot(row, row))
        total = product.clone() if total is None else total.add_(product)
    assert total is not None
    return torch.stack(squares), total


def one_by_one(left: Tensor, right: Tensor) -> bool:
    """Whether each product is a call of its own, and only one of them is held: large ones on a CPU."""
    if left.device.type != "cpu" or left.dtype != torch.float32 or right.dtype != torch.float32:
        return False
    result = left.shape[1] * right.shape[2]
    return result >= _LARGE_RESULT and result * left.shape[2] >= _LARGE_PRODUCT


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if ONE_DNN is None:
        torch.mm(left, right, out=out)
    else:
        out.copy_(ONE_DNN(left, right.T, None, "none", [], ""))
