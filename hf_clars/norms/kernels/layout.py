"""How operands of kernels lie in memory, and what memory there is on the chip."""

import functools

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


def loads_boxes(t: Tensor) -> bool:
    """Whether boxes of `[N, C, H, W]` can be loaded by the hardware: Hopper or later, 16 bytes from one to the next."""
    aligned = t.data_ptr() % 16 == 0 and all(t.stride(dim) * t.element_size() % 16 == 0 for dim in (0, 2, 3))
    return aligned and t.stride(1) == 1 and (not t.is_cuda or torch.cuda.get_device_capability(t.device) >= (9, 0))


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have of it; in the interpreter, an H100's."""
    if device.type != "cuda":
        return 227 << 10
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)  # as torch asks
