"""How operands of kernels lie in memory."""

import torch
from torch import Tensor


def with_adjacent_channels(t: Tensor) -> Tensor:
    """`[N, C, H, W]` as it is, or a copy: of adjacent channels, 16 bytes can be loaded at once."""
    if t.shape[1] == 1 or (t.stride(1) == 1 and all(t.stride())):
        return t
    return t.contiguous(memory_format=torch.channels_last)


def pixels_in_a_row(t: Tensor) -> bool:
    """Whether pixels have one distance in memory, over ends of rows, too."""
    return t.shape[2] == 1 or t.stride(2) == t.shape[3] * t.stride(3)
