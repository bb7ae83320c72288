"""Hand-written kernels for CUDA, behind the samplers' plain torch forms, which stay the reference and the fallback.

A sampler that can be written as the weight gradient of a two-dimensional convolution says so
(`Sampler.convolution`), and `choose` says which kernel, if any, serves it:

==========  ============================================================================================
tiles       `weight_gradient.py`: tensor cores, sample by sample; gives the weight gradient, too
depthwise   `depthwise.py`: as many groups as channels; gives the weight gradient, too
gram        `gram.py`: few positions against many weights; the weight gradient is left to torch
==========  ============================================================================================

Nothing of Triton is imported before one is launched.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Convolution

_TRITON = importlib.util.find_spec("triton") is not None
_NARROW = 16  # channels of a group, of which a tile would be mostly empty
# From so many weights on a tile is squared and added for longer than two Gram matrices take, if positions are few.
_MANY_WEIGHTS = 1 << 17
_FEW_POSITIONS = 64
_FEWEST_POSITIONS = 8  # of tiles
_MOST_TAPS = 64  # whose sums a program keeps in registers; of more, compiling takes minutes


def choose(x: Tensor, shape: Sequence[int], positions: int, groups: int, folds: int, *, convolution: bool) -> str:
    """The kernel for an input like `x`; "" for none.

    Args:
        shape: of the weight.
        positions: of one image's output.
        folds: images of a sample.
        convolution: or a matrix product; what torch says about TF32 is said of each.
    """
    return by_shape(shape, positions, groups, folds) if serves(x.device, x.dtype, convolution) else ""


def by_shape(shape: Sequence[int], positions: int, groups: int, folds: int) -> str:
    """What `choose` says of a device and a dtype that kernels serve."""
    if groups == shape[0] > 1 == shape[1]:
        return "depthwise" if math.prod(shape[2:]) <= _MOST_TAPS else ""
    if groups > 1 and min(shape[1], shape[0] // groups) < _NARROW:
        return ""
    few = 1 < positions <= _FEW_POSITIONS and folds == 1
    if few and (math.prod(shape) >= _MANY_WEIGHTS or positions < _FEWEST_POSITIONS):
        return "gram"
    return "tiles" if positions * folds >= _FEWEST_POSITIONS else ""


@torch.compiler.assume_constant_result
def serves(device: torch.device, dtype: torch.dtype, convolution: bool) -> bool:
    if not _TRITON or device.type != "cuda" or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):  # Ampere: bfloat16 and TF32
        return False
    if dtype != torch.float32:
        return dtype in (torch.float16, torch.bfloat16)
    # `allow_tf32` raises where this was set; this follows that.
    backend = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul  # type: ignore[attr-defined]
    return backend.fp32_precision == "tf32"


def squares_and_sum(
    convolution: Convolution,
    samples: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` in float32, and `Σ_i c_i` of the weight's shape, summed up in float32, in `dtype`."""
    from . import depthwise, weight_gradient

    kernel = depthwise if convolution.kernel == "depthwise" else weight_gradient
    return kernel.squares_and_sum(convolution, samples, dtype, memory_format)


def squares(convolution: Convolution, samples: int) -> Tensor:
    """`‖c_i‖²` `[samples]` in float32."""
    if convolution.kernel == "gram":
        from . import gram

        return gram.squares(convolution)
    return squares_and_sum(convolution, samples, torch.float32)[0]
