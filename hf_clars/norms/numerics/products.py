"""Batches of matrix products: how they are multiplied, and summed up with their squared norms.

`multiply_and_sum` is everything that a per-sample gradient is needed for; on a GPU, `kernels/` do it without one.
"""

import torch
from torch import Tensor

from .reductions import add_samples_, squared_norms

# From so many multiply-adds a product on, a call of oneDNN for each costs less than MKL's loop over all: on AMD's
# processors with AVX-512 it is twice as fast, on Intel's about as fast.
_LARGE_PRODUCT = 1 << 20
_LARGE_RESULT = 1 << 13  # elements; below, it is the other way round

# A private operator, which torch.compile's code calls for linear layers; test_norms_products.py fails if it goes.
ONE_DNN = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """`left [B, O, P]`, `right [B, P, I]` → `[B, O, I]`."""
    if one_by_one(left, right):
        return torch.stack([_product(a, b) for a, b in zip(left.unbind(), right.mT.unbind(), strict=True)])
    return torch.bmm(left, right)


def multiply_and_sum(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """`total += Σ_i left_i right_i`; returns `‖left_i right_i‖²`, `[B]`.

    `left [B, O, P]`, `right [B, P, I]`, `total [O, I]`, contiguous and of the dtype of norms.
    """
    if not one_by_one(left, right):
        each = torch.bmm(left, right)
        add_samples_(total, each)
        return squared_norms(each)
    squares = []
    for a, b in zip(left.unbind(), right.mT.unbind(), strict=True):
        each = _product(a, b)
        row = each.view(-1)
        squares.append(torch.dot(row, row))
        total.add_(each)
    return torch.stack(squares)


def one_by_one(left: Tensor, right: Tensor) -> bool:
    """Whether each product is a call of its own: large ones on a CPU."""
    return (
        ONE_DNN is not None
        and left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and left.shape[1] * right.shape[2] >= _LARGE_RESULT
        and left.shape[1] * left.shape[2] * right.shape[2] >= _LARGE_PRODUCT
    )


def _product(left: Tensor, right_transposed: Tensor) -> Tensor:
    assert ONE_DNN is not None
    return ONE_DNN(left, right_transposed, None, "none", [], "")
