"""Squared norms of weight gradients where positions are few against channels: the Gram form in one pass.

    ‖c_i‖² = Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩

with `x_p` the window of the input that output position p sees. Both Gram matrices stay in registers. Of a sample whose
sum cancels so far that rounding shows (`forms.py` says when), the weight gradient is formed, a tile at a time.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics.reductions import CANCELLED
from .launch import Launch
from .layout import Convolution, Geometry, Operands, with_adjacent_channels
from .tiling import power_of_two

_CHANNELS = 64


@triton.jit
def _window(
    x_tile,
    step,
    blocks,
    row,
    column,
    inside,
    lane,
    channels,
    height,
    width,
    x_channel,
    x_row,
    x_column,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    TAPS_X: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """What all positions see through one tap, of one block of channels."""
    tap = step // blocks
    first = step % blocks * CHANNELS
    shift_y = tap // TAPS_X * dilation_y - padding_y
    shift_x = tap % TAPS_X * dilation_x - padding_x
    y_in = row * stride_y + shift_y
    x_in = column * stride_x + shift_x
    seen = inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
    at = shift_y * x_row + shift_x * x_column + first * x_channel
    return tl.load(x_tile + at, mask=seen[:, None] & (lane < channels - first)[None, :], other=0.0)


@triton.jit(
    do_not_specialize=[
        "height",
        "width",
        "positions",
        "row_length",
        "padding_y",
        "padding_x",
        "dilation_y",
        "dilation_x",
    ]
)
def _gram_squares(
    x,
    d,
    squares,
    channels,
    outputs,
    height,
    width,
    positions,
    row_length,
    x_image,
    x_channel,
    x_row,
    x_column,
    d_image,
    d_channel,
    d_row,
    d_column,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    TAPS_X: tl.constexpr,
    TAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CANCELLED: tl.constexpr,
):
    """Program (sample, group): squares [samples, groups]."""
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    p = tl.arange(0, POSITIONS)
    row = p // row_length
    column = p % row_length
    lane = tl.arange(0, CHANNELS)
    x_tile = x + sample * x_image + (group * channels + lane)[None, :] * x_channel
    x_tile += (row * stride_y * x_row + column * stride_x * x_column)[:, None]
    d_tile = d + sample * d_image + (group * outputs + lane)[None, :] * d_channel
    d_tile += (row * d_row + column * d_column)[:, None]
    inside = p < positions

    gram_x = tl.zeros((POSITIONS, POSITIONS), tl.float32)
    blocks = tl.cdiv(channels, CHANNELS)
    for step in range(TAPS * blocks):
        window = _window(
            x_tile, step, blocks, row, column, inside, lane, channels, height, width, x_channel, x_row, x_column,
            stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, TAPS_X, CHANNELS,
        )  # fmt: skip
        gram_x = tl.dot(window, tl.trans(window), gram_x, input_precision="tf32")
    gram_d = tl.zeros((POSITIONS, POSITIONS), tl.float32)
    for block in range(tl.cdiv(outputs, CHANNELS)):
        first = block * CHANNELS
        mask = inside[:, None] & (lane < outputs - first)[None, :]
        derivative = tl.load(d_tile + first * d_channel, mask=mask, other=0.0)
        gram_d = tl.dot(derivative, tl.trans(derivative), gram_d, input_precision="tf32")
    terms = gram_x * gram_d
    square = tl.sum(tl.sum(terms, 1), 0)
    own = tl.sum(tl.sum(tl.where(p[:, None] == p[None, :], terms, 0.0), 1), 0)
    if square < own / CANCELLED:
        square = 0.0  # loads are not ahead of their use here, which would take registers from the loops above
        for step in tl.range(TAPS * blocks, num_stages=1):
            window = _window(
                x_tile, step, blocks, row, column, inside, lane, channels, height, width, x_channel, x_row, x_column,
                stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, TAPS_X, CHANNELS,
            )  # fmt: skip
            for block in tl.range(tl.cdiv(outputs, CHANNELS), num_stages=1):
                first_output = block * CHANNELS
                mask = inside[:, None] & (lane < outputs - first_output)[None, :]
                derivative = tl.load(d_tile + first_output * d_channel, mask=mask, other=0.0)
                tile = tl.dot(tl.trans(derivative), window, input_precision="tf32")
                square += tl.sum(tl.sum(tile * tile, 1), 0)
    tl.store(squares + sample * tl.num_programs(1) + group, square)


@functools.lru_cache(maxsize=4096)
def _launch(operands: Operands, geometry: Geometry) -> Launch:
    x, d, *_ = operands
    shape, stride, padding, dilation, groups = geometry
    outputs, channels, *kernel = shape
    positions = d.shape[2] * d.shape[3]
    return Launch(
        _gram_squares,
        (x.shape[0], groups),
        (channels, outputs // groups, *x.shape[2:], positions, d.shape[3], *x.strides, *d.strides, *stride, *padding,
         *dilation),
        {"TAPS_X": kernel[1], "TAPS": kernel[0] * kernel[1], "POSITIONS": max(16, power_of_two(positions)),
         "CHANNELS": _CHANNELS, "CANCELLED": CANCELLED},
        num_warps=4,
        num_stages=4,
    )  # fmt: skip


def squares(convolution: Convolution) -> Tensor:
    """`‖c_i‖²` `[N]`, float32, of a convolution a sample of which is one image."""
    x, d = with_adjacent_channels(convolution.x), with_adjacent_channels(convolution.d)
    launch = _launch(Operands.of(x, d), convolution.geometry)
    each = torch.empty((x.shape[0], convolution.groups), dtype=torch.float32, device=x.device)
    launch(x.device, x, d, each)
    return each.sum(1) if convolution.groups > 1 else each[:, 0]
