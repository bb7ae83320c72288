"""What kernels multiply, and how it lies in memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 16  # channels, that would leave more than half of a tile's rows empty


class Operand(NamedTuple):
    """Where elements `[N, C, H, W]` are, of which several may be the same: a kernel needs no view for that."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Operands(NamedTuple):
    """All that a kernel is compiled for, of the two tensors that it multiplies."""

    x: Operand
    d: Operand
    dtype: torch.dtype
    device: torch.device
    are_aligned: tuple[bool, bool]  # begin where Triton loads 16 bytes at once: it compiles another kernel where not

    @classmethod
    def of(cls, x: Tensor, d: Tensor) -> Operands:
        are_aligned = x.data_ptr() % 16 == 0, d.data_ptr() % 16 == 0
        return cls(Operand(x.shape, x.stride()), Operand(d.shape, d.stride()), x.dtype, x.device, are_aligned)


class Geometry(NamedTuple):
    """Of a two-dimensional convolution. `shape` is its weight's, `[O, C / groups, K, L]`."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Convolution:
    """The two-dimensional convolution that a weight gradient is of.

    Args:
        x, d: its input `[N, C, H, W]` and its output's derivative `[N, O, H', W']`, of one type. Rows `k·i … k·(i+1)−1`
            are sample i's.
        shape: of its weight, `[O, C / groups, K, L]`.
        kernel: which one serves it.
    """

    x: Tensor
    d: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    kernel: str

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.shape, self.stride, self.padding, self.dilation, self.groups)


def with_adjacent_channels(t: Tensor) -> Tensor:
    """`[N, C, H, W]` as it is, or a copy: of adjacent channels, 16 bytes can be loaded at once."""
    if t.shape[1] == 1 or (t.stride(1) == 1 and all(t.stride())):
        return t
    return t.contiguous(memory_format=torch.channels_last)


def as_pixels(x: Operand, stride: tuple[int, ...], positions: tuple[int, ...]) -> Operand:
    """What a kernel of one tap sees of `x`: one pixel for each position."""
    image, channel, row, column = x.strides
    return Operand((*x.shape[:2], *positions[2:]), (image, channel, row * stride[0], column * stride[1]))


def as_row(t: Operand) -> Operand | None:
    """An image as one row of pixels, if they have one distance in memory over ends of rows, too."""
    (images, channels, rows, columns), (image, channel, row, column) = t
    if rows > 1 and row != columns * column:
        return None
    return Operand((images, channels, 1, rows * columns), (image, channel, row, column))


def folds(geometry: Geometry) -> int:
    """How many channels a pixel is to have so that a kernel's row of them can be taken for one pixel's; 0: it is not.

    So a few channels (of an image: 3) fill a tile, and lie side by side.
    """
    channels, taps_x = geometry.shape[1], geometry.shape[3]
    if geometry.groups > 1 or taps_x == 1 or geometry.dilation[1] > 1 or channels > _FEW:
        return 0
    return 1 << (channels - 1).bit_length()


def padded(x: Tensor, padding: tuple[int, ...], channels: int) -> Tensor:
    """`x` with zeros around it and in further channels, and adjacent channels."""
    pads = (padding[1], padding[1], padding[0], padding[0], 0, channels - x.shape[1])
    if any(pads):
        x = F.pad(x, pads)
    strides = (x.shape[1] * x.shape[2] * x.shape[3], 1, x.shape[1] * x.shape[3], x.shape[1])
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def fold_rows(x: Operand, channels: int, taps_x: int, stride_x: int, columns: int) -> Operand:
    """Of `padded` images, for each column of positions the pixels that a row of the kernel sees, as one pixel's."""
    image, _, row, column = x.strides
    return Operand((x.shape[0], taps_x * channels, x.shape[2], columns), (image, 1, row, column * stride_x))


def loads_boxes(t: Operand, element_size: int, device: torch.device) -> bool:
    """Whether boxes of `t`, that begins at 16 bytes, can be loaded by the hardware: Hopper or later, 16 bytes from
    each pixel, row and image to the next."""
    apart = all(t.strides[dim] * element_size % 16 == 0 for dim in (0, 2, 3))
    return apart and t.strides[1] == 1 and (device.type != "cuda" or _capability(device) >= (9, 0))


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have of a multiprocessor's; in the interpreter, an H100's."""
    if device.type != "cuda":
        return 227 << 10
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)  # as torch asks
