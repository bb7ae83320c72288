"""Batches of matrix products: one operator for all of them, or a call for each."""

import pytest
import torch

from hf_clars.norms.numerics import products

SIZES = {"small": (4, 3, 5, 2), "large": (3, 530, 90, 510)}  # batch, O, P, I


def test_one_dnn_is_there():
    """The private operator behind large products on an AMD CPU with AVX-512."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    of_amd = "AMD" in getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    assert (products.ONE_DNN is not None) == (wide and of_amd and torch.backends.mkldnn.is_available())
    torch.ops.mkldnn._linear_pointwise.default  # noqa: B018


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_products_and_their_sum(size, dtype, transposed):
    batch, outputs, positions, inputs = SIZES[size]
    left, right = torch.randn(batch, outputs, positions), torch.randn(batch, positions, inputs)
    expected = torch.einsum("bop,bpi->boi", left.double(), right.double())
    if transposed:  # as convolutions have them: the other dimension last in memory
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    left, right = left.to(dtype), right.to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert products.one_by_one(left, right) == (size == "large" and dtype == torch.float32)

    torch.testing.assert_close(products.multiply(left, right).double(), expected, rtol=tolerance, atol=tolerance)
    squares, total = products.multiply_and_sum(left, right, None)
    torch.testing.assert_close(total.double(), expected.sum(0), rtol=tolerance, atol=10 * tolerance)
    squares, total = products.multiply_and_sum(left, right, torch.ones(outputs, inputs, dtype=dtype))
    truth = expected.square().sum((1, 2))
    torch.testing.assert_close(squares.double(), truth, rtol=tolerance, atol=0)
    torch.testing.assert_close(total.double(), 1 + expected.sum(0), rtol=tolerance, atol=10 * tolerance)


def test_half_precision_is_summed_in_float32():
    left, right = torch.randn(300, 2, 1).bfloat16(), torch.ones(300, 1, 2).bfloat16()
    squares, total = products.multiply_and_sum(left, right, None)
    assert squares.dtype == total.dtype == torch.float32
    torch.testing.assert_close(total, left.float().sum(0).expand(2, 2))
