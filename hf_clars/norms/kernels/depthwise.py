"""Every sample's weight gradient of a depthwise convolution: K·L numbers a channel, so few that they may be written."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reductions import squared_norms
from .layout import with_adjacent_channels

_ROWS, _CHANNELS, _WARPS = 8, 64, 4
_PROGRAMS = 2112  # about so many, where there is enough to do: sixteen for each multiprocessor of an H100
_SHORTEST = 64  # positions of a run


@triton.jit(
    do_not_specialize=[
        "height", "width", "positions", "row_length", "padding_y", "padding_x", "dilation_y", "dilation_x"
    ]
)  # fmt: skip
def _depthwise(
    x,
    d,
    each,
    images,  # of a sample
    channels,
    height,
    width,
    positions,
    row_length,  # positions in a row
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
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Program (channels, sample, run of positions): `Σ_p d_p x_{p+tap}`, the sums of all taps side by side.

    each [samples, runs, TAPS, channels].
    """
    sample = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    c_inside = (c < channels)[None, :]
    x += c[None, :] * x_channel
    d += c[None, :] * d_channel
    chunks = tl.cdiv(positions, ROWS)  # of an image
    run = tl.cdiv(images * chunks, tl.num_programs(2))
    first = tl.program_id(2) * run
    sums = ()
    for tap in tl.static_range(TAPS):
        sums = sums + (tl.zeros((ROWS, CHANNELS), tl.float32),)
    for step in range(first, tl.minimum(first + run, images * chunks)):
        image = sample * images + step // chunks
        p = step % chunks * ROWS + tl.arange(0, ROWS)
        inside = p < positions
        row = p // row_length
        column = p % row_length
        at = image * d_image + (row * d_row + column * d_column)
        derivative = tl.load(d + at[:, None], mask=inside[:, None] & c_inside, other=0.0).to(tl.float32)
        new = ()
        for tap in tl.static_range(TAPS):
            y_in = row * stride_y + (tap // TAPS_X * dilation_y - padding_y)
            x_in = column * stride_x + (tap % TAPS_X * dilation_x - padding_x)
            x_inside = inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
            at = image * x_image + (y_in * x_row + x_in * x_column)
            pixels = tl.load(x + at[:, None], mask=x_inside[:, None] & c_inside, other=0.0).to(tl.float32)
            new = new + (sums[tap] + derivative * pixels,)
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
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` and `Σ_i c_i`, both float32, of a convolution with as many groups as channels and outputs.

    Arguments as those of `weight_gradient.squares_and_sum`.
    """
    channels, _, *kernel = shape
    x, d = with_adjacent_channels(x), with_adjacent_channels(d)
    positions = d.shape[2] * d.shape[3]
    programs = triton.cdiv(channels, _CHANNELS) * samples
    runs = max(1, min(_PROGRAMS // programs, positions // _SHORTEST))
    each = x.new_empty((samples, runs, kernel[0] * kernel[1], channels), dtype=torch.float32)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _depthwise[(triton.cdiv(channels, _CHANNELS), samples, runs)](
            x, d, each, x.shape[0] // samples, channels, *x.shape[2:], positions, d.shape[3], *x.stride(), *d.stride(),
            *stride, *padding, *dilation, TAPS_X=kernel[1], TAPS=kernel[0] * kernel[1], ROWS=_ROWS, CHANNELS=_CHANNELS,
            num_warps=_WARPS,
        )  # fmt: skip
    own = each.sum(1) if runs > 1 else each[:, 0]
    return squared_norms(own), own.sum(0).T.reshape(shape)
