"""Hand-written kernels for CUDA, behind the rules' plain torch forms, which stay the reference and the fallback.

A rule that can be written as the weight gradient of a two-dimensional convolution says so (`Rule.convolution`); where
`serve` agrees, `squares_and_sum` serves it. Nothing of Triton is imported before.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

_TRITON = importlib.util.find_spec("triton") is not None
# Fewer positions than this are cheaper in the Gram form or as products: the tile would be squared and added more often
# than multiplied.
_POSITIONS = 8


@dataclass(frozen=True)
class Convolution:
    """The two-dimensional convolution that a weight gradient is of.

    Args:
        x, d: its input `[N, C, H, W]` and its output's derivative `[N, O, H', W']`.
        shape: of its weight, `[O, C / groups, K, L]`.
    """

    x: Tensor
    d: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def serve(x: Tensor, positions: int, *, convolution: bool) -> bool:
    """Whether there is a kernel for operands like `x` with so many positions a sample.

    Args:
        convolution: or a matrix product; what torch says about TF32 is said of each.
    """
    return positions >= _POSITIONS and x.is_cuda and _serve(x.device.index, x.dtype, convolution)


@torch.compiler.assume_constant_result
def _serve(device: int, dtype: torch.dtype, convolution: bool) -> bool:
    if not _TRITON or torch.cuda.get_device_capability(device) < (8, 0):  # Ampere: bfloat16 and TF32
        return False
    tf32 = torch.backends.cudnn.allow_tf32 if convolution else torch.backends.cuda.matmul.allow_tf32
    return dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and tf32)


def squares_and_sum(convolution: Convolution, samples: int) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` and `Σ_i c_i` of the weight's shape, both float32."""
    from . import depthwise, weight_gradient

    c = convolution
    if c.groups == c.shape[0] > 1 == c.shape[1]:
        return depthwise.squares_and_sum(c.x, c.d, c.shape, c.stride, c.padding, c.dilation, samples)
    return weight_gradient.squares_and_sum(c.x, c.d, c.shape, c.stride, c.padding, c.dilation, c.groups, samples)
