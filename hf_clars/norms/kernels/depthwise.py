"""Every sample's weight gradient of a depthwise convolution: K·L numbers a channel, so few that they may be written."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch
from .layout import Convolution, Geometry, Operands, with_adjacent_channels
from .tiling import blocks, power_of_two

_COLUMNS, _CHANNELS, _WARPS = 16, 32, 4
_PROGRAMS = 2112  # about so many, where there is enough to do: sixteen for each multiprocessor of an H100
_SHORTEST = 64  # positions of a run
_OF_SAMPLE, _WEIGHTS = 512, 32  # weights that are added up at a time, of a sample and of all
_ELEMENTS = 4096  # that are loaded at a time


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
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    stride_y: tl.constexpr,
    stride_x: tl.constexpr,
    TAPS_X: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Program (sample and channels, run of rows): `Σ_p d_p x_{p+tap}`, the sums of all taps side by side.

    Only the first dimension of a grid has room for any number of samples. each [samples, runs, TAPS, channels].
    """
    channel_blocks = tl.cdiv(channels, CHANNELS)
    sample = (tl.program_id(0) // channel_blocks).to(tl.int64)
    c = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    box_column = tl.arange(0, COLUMNS)
    c_inside = (c < channels)[None, :]
    x += c[None, :] * x_channel + (box_column * stride_x * x_column)[:, None]
    d += c[None, :] * d_channel + (box_column * d_column)[:, None]
    steps = images * rows * column_blocks
    run = tl.cdiv(steps, tl.num_programs(1))
    first = tl.program_id(1) * run
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
        at = ((sample * tl.num_programs(1) + tl.program_id(1)) * TAPS + tap) * channels
        tl.store(each + at + c, tl.sum(sums[tap], 0), mask=c < channels)


@triton.jit(do_not_specialize=["samples", "runs", "weights", "channels"])
def _add_up(
    each,
    squares,
    gradient,
    samples,
    runs,
    weights,
    channels,
    gradient_channel,
    gradient_tap,
    OF_SAMPLE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Program (sample): squares. Then program (weights): gradient. each [samples, runs, weights], weights by tap."""
    program = tl.program_id(0)
    if program < samples:
        # A name must not be of one type here and of another in the other branch.
        lane = tl.arange(0, OF_SAMPLE)
        of_run = tl.arange(0, ELEMENTS // OF_SAMPLE)
        of_sample = each + tl.cast(program, tl.int64) * runs * weights
        square = tl.zeros((OF_SAMPLE,), tl.float32)
        for first_weight in range(0, weights, OF_SAMPLE):
            own = tl.zeros((OF_SAMPLE,), tl.float32)
            for first_run in range(0, runs, ELEMENTS // OF_SAMPLE):
                of_runs = (first_run + of_run)[:, None]
                of_weights = (first_weight + lane)[None, :]
                there = (of_runs < runs) & (of_weights < weights)
                loaded = tl.load(of_sample + of_runs * weights + of_weights, mask=there, other=0.0)
                own += tl.sum(loaded, 0)
            square += own * own
        tl.store(squares + program, tl.sum(square, 0))
    else:
        weight = (program - samples) * WEIGHTS + tl.arange(0, WEIGHTS)
        total = tl.zeros((WEIGHTS,), tl.float32)
        for first in range(0, samples * runs, ELEMENTS // WEIGHTS):
            row = first + tl.arange(0, ELEMENTS // WEIGHTS)
            inside = (row < samples * runs)[:, None] & (weight < weights)[None, :]
            at = row.to(tl.int64)[:, None] * weights + weight[None, :]
            total += tl.sum(tl.load(each + at, mask=inside, other=0.0), 0)
        at = weight % channels * gradient_channel + weight // channels * gradient_tap
        tl.store(gradient + at, total.to(gradient.dtype.element_ty), mask=weight < weights)


@dataclass(frozen=True)
class _Plan:
    """What is the same each time for operands of these sizes."""

    taps: Launch
    add_up: Launch
    each: tuple[int, ...]
    gradient_strides: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def plan_of(
    operands: Operands,
    geometry: Geometry,
    samples: int,
    gradient_dtype: torch.dtype,  # for which the second kernel is compiled
    memory_format: torch.memory_format,
) -> _Plan:
    x, d, *_ = operands
    shape, stride, padding, dilation, _ = geometry
    channels, _, *kernel = shape
    taps = kernel[0] * kernel[1]
    rows, row_length = d.shape[2:]
    columns = min(_COLUMNS, power_of_two(row_length))
    programs = blocks(channels, _CHANNELS) * samples
    runs = max(1, min(_PROGRAMS // programs, rows * row_length // _SHORTEST))
    weight = torch.empty(shape, device="meta", memory_format=memory_format)
    return _Plan(
        Launch(
            _depthwise,
            (programs, runs),
            (x.shape[0] // samples, channels, *x.shape[2:], rows, row_length, blocks(row_length, columns), *x.strides,
             *d.strides, *padding, *dilation),
            {"stride_y": stride[0], "stride_x": stride[1], "TAPS_X": kernel[1], "TAPS": taps, "COLUMNS": columns,
             "CHANNELS": _CHANNELS},
            num_warps=_WARPS,
        ),
        Launch(
            _add_up,
            (samples + blocks(taps * channels, _WEIGHTS),),
            (samples, runs, taps * channels, channels, weight.stride(0), weight.stride(3 if kernel[1] > 1 else 2)),
            {"OF_SAMPLE": _OF_SAMPLE, "WEIGHTS": _WEIGHTS, "ELEMENTS": _ELEMENTS},
        ),
        (samples, runs, taps, channels),
        weight.stride(),
    )  # fmt: skip


def squares_and_sum(
    convolution: Convolution,
    samples: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` in float32, and `Σ_i c_i` in `dtype`: as many groups as channels and outputs."""
    x, d = with_adjacent_channels(convolution.x), with_adjacent_channels(convolution.d)
    device = x.device
    plan = plan_of(Operands.of(x, d), convolution.geometry, samples, dtype, memory_format)
    each = torch.empty(plan.each, dtype=torch.float32, device=device)
    squares = torch.empty(samples, dtype=torch.float32, device=device)
    gradient = torch.empty_strided(convolution.shape, plan.gradient_strides, dtype=dtype, device=device)
    plan.taps(device, x, d, each)
    plan.add_up(device, each, squares, gradient)
    return squares, gradient
