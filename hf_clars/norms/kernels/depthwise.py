"""Every sample's weight gradient of a depthwise convolution: K·L numbers a channel, so few that they may be written."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reductions import squared_norms
from .layout import with_adjacent_channels

_COLUMNS, _CHANNELS, _WARPS = 16, 32, 4
_PROGRAMS = 2112  # about so many, where there is enough to do: sixteen for each multiprocessor of an H100
_SHORTEST = 64  # positions of a run


@triton.jit(
    do_not_specialize=["height", "width", "rows", "row_length", "padding_y", "padding_x", "dilation_y", "dilation_x"]
)
def _depthwise(
    x,
    d,
    each,
    images,  # of a sample
    channels,
    height,
    width,
    rows,  # of positions
    row_length,
    column_blocks,
    x_image,
    x_channel,
    x_row,
    x_column,
    d_image,
    d_channel,
    d_row,
    d_column,
    stride_y: tl.constexpr,
    stride_x: tl.constexpr,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    TAPS_X: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Program (channels, sample, run of rows): `Σ_p d_p x_{p+tap}`, the sums of all taps side by side.

    each [samples, runs, TAPS, channels].
    """
    sample = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    box_column = tl.arange(0, COLUMNS)
    c_inside = (c < channels)[None, :]
    x += c[None, :] * x_channel + (box_column * stride_x * x_column)[:, None]
    d += c[None, :] * d_channel + (box_column * d_column)[:, None]
    steps = images * rows * column_blocks
    run = tl.cdiv(steps, tl.num_programs(2))
    first = tl.program_id(2) * run
    sums = ()
    for _ in tl.static_range(TAPS):
        sums += (tl.zeros((COLUMNS, CHANNELS), tl.float32),)  # type: ignore[assignment]
    for step in range(first, tl.minimum(first + run, steps)):
        column = step % column_blocks * COLUMNS
        row = step // column_blocks % rows
        image = sample * images + step // column_blocks // rows
        inside = box_column < row_length - column
        at = image * d_image + (row * d_row + column * d_column)
        derivative = tl.load(d + at, mask=inside[:, None] & c_inside, other=0.0).to(tl.float32)
        new = ()
        for tap in tl.static_range(TAPS):
            y_in = row * stride_y + (tap // TAPS_X * dilation_y - padding_y)
            shift_x = tap % TAPS_X * dilation_x - padding_x + column * stride_x
            x_in = box_column * stride_x + shift_x
            x_inside = inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
            at = image * x_image + (y_in * x_row + shift_x * x_column)
            pixels = tl.load(x + at, mask=x_inside[:, None] & c_inside, other=0.0).to(tl.float32)
            new += (sums[tap] + derivative * pixels,)  # type: ignore[assignment]
        sums = new
    for tap in tl.static_range(TAPS):
        at = ((sample * tl.num_programs(2) + tl.program_id(2)) * TAPS + tap) * channels
        tl.store(each + at + c, tl.sum(sums[tap], 0), mask=c < channels)


def squares_and_sum(
    x: Tensor,
    d: Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    samples: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` in float32, and `Σ_i c_i` in `dtype`: as many groups as channels and outputs.

    Arguments as those of `weight_gradient.squares_and_sum`.
    """
    channels, _, *kernel = shape
    x, d = with_adjacent_channels(x), with_adjacent_channels(d)
    rows, row_length = d.shape[2:]
    columns = min(_COLUMNS, triton.next_power_of_2(row_length))
    programs = triton.cdiv(channels, _CHANNELS) * samples
    runs = max(1, min(_PROGRAMS // programs, rows * row_length // _SHORTEST))
    each = x.new_empty((samples, runs, kernel[0] * kernel[1], channels), dtype=torch.float32)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _depthwise[(triton.cdiv(channels, _CHANNELS), samples, runs)](
            x, d, each, x.shape[0] // samples, channels, *x.shape[2:], rows, row_length,
            triton.cdiv(row_length, columns), *x.stride(), *d.stride(), *stride, *padding, *dilation,
            TAPS_X=kernel[1], TAPS=kernel[0] * kernel[1], COLUMNS=columns, CHANNELS=_CHANNELS, num_warps=_WARPS,
        )  # fmt: skip
    own = each.sum(1) if runs > 1 else each[:, 0]
    return squared_norms(own), own.sum(0).T.reshape(shape).to(dtype)
