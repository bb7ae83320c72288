"""A weight gradient and the squared norm of every sample's share in it, in one pass and nothing per sample in memory.

The weight gradient of a convolution or a linear layer is a matrix product whose inner dimension runs over samples and
their positions. A program of this kernel computes one tile of it for a run of samples; at each sample's end its sum of
squares is noted and the tile added to the total, both from registers:

    Σ_i c_i    and    ‖c_i‖² = Σ_tiles Σ_elements (Σ_p x_{i,p}ᵀ d_{i,p})²

The totals of the runs, and the squares of the tiles, are added up by a second kernel, `totals.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import totals
from .launch import Launch
from .layout import (
    Convolution,
    Geometry,
    Operand,
    Operands,
    as_pixels,
    as_row,
    fold_rows,
    folds,
    loads_boxes,
    padded,
    shared_memory,
    with_adjacent_channels,
)
from .tiling import blocks, box_of, run_of, stages_of, tiling_of


@triton.jit(
    do_not_specialize=[
        "samples", "run", "height", "width", "rows", "row_length", "padding_y", "padding_x", "dilation_y", "dilation_x",
    ]
)  # fmt: skip
def _weight_gradient(
    x,
    d,
    each,
    totals,
    samples,
    run,  # samples of a program
    images,  # of a sample
    channels,
    outputs,
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
    PADDED: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BOX_Y: tl.constexpr,
    BOX_X: tl.constexpr,
    BOXES: tl.constexpr,
):
    """Program (tile, run). Rows of a tile are input channels at one kernel tap, columns are output channels.

    Positions are multiplied a box of BOX_Y rows and BOX_X columns at a time. With BOXES, `x` and `d` are descriptors of
    tensors `[N, rows, columns, channels]`, of which the hardware loads boxes, with zeros for what is outside.

    each [tiles, samples]: a tile's sums of squares; totals [runs, tiles, INPUTS, OUTPUTS].
    """
    tile = tl.program_id(0)
    output_tiles = tl.cdiv(outputs, OUTPUTS)
    input_tiles = tl.cdiv(channels, INPUTS)
    row_tiles = TAPS * input_tiles
    group = tile // (row_tiles * output_tiles)
    row_tile = tile // output_tiles % row_tiles
    first_o = tile % output_tiles * OUTPUTS
    o = first_o + tl.arange(0, OUTPUTS)
    tap = row_tile // input_tiles
    first_c = row_tile % input_tiles * INPUTS
    c = first_c + tl.arange(0, INPUTS)
    c_inside = (c < channels)[None, :]
    o_inside = (o < outputs)[None, :]
    shift_y = tap // TAPS_X * dilation_y - padding_y
    shift_x = tap % TAPS_X * dilation_x - padding_x
    box = tl.arange(0, BOX_Y * BOX_X)
    box_row = box // BOX_X
    box_column = box % BOX_X
    y_of_box = (box_row * stride_y)[:, None] + shift_y
    x_of_box = (box_column * stride_x)[:, None] + shift_x
    if not BOXES:
        x_of_tile = (group * channels + c)[None, :] * x_channel + y_of_box * x_row + x_of_box * x_column
        d_of_tile = (group * outputs + o)[None, :] * d_channel + (box_row * d_row + box_column * d_column)[:, None]

    first = tl.program_id(1) * run
    last = tl.minimum(first + run, samples)
    chunks = tl.cdiv(rows, BOX_Y) * column_blocks  # of an image
    total = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    own = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    # One loop over samples and their chunks, so that loads go on over a sample's end.
    image = first * images - 1
    chunk = chunks - 1
    for _ in range((last - first) * images * chunks):
        chunk = tl.where(chunk == chunks - 1, 0, chunk + 1)
        image = tl.where(chunk == 0, image + 1, image)
        row = chunk // column_blocks * BOX_Y
        column = chunk % column_blocks * BOX_X
        if BOXES:
            left = x.load([image, row + shift_y, column + shift_x, first_c]).reshape(BOX_Y * BOX_X, INPUTS)
            right = d.load([image, row, column, first_o]).reshape(BOX_Y * BOX_X, OUTPUTS)
        else:
            inside = (box_row < rows - row) & (box_column < row_length - column)
            x_inside = inside[:, None]
            if PADDED:
                y_in = y_of_box + row * stride_y
                x_in = x_of_box + column * stride_x
                x_inside = x_inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
            x_at = tl.cast(image, tl.int64) * x_image + (row * stride_y * x_row + column * stride_x * x_column)
            d_at = tl.cast(image, tl.int64) * d_image + (row * d_row + column * d_column)
            left = tl.load(x + x_at + x_of_tile, mask=x_inside & c_inside, other=0.0)
            right = tl.load(d + d_at + d_of_tile, mask=inside[:, None] & o_inside, other=0.0)
        own = tl.dot(tl.trans(left), right, own, input_precision="tf32")
        if chunk == chunks - 1 and image % images == images - 1:
            tl.store(each + tile * samples + image // images, tl.sum(tl.sum(own * own, 1), 0))
            total += own
            own = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    at = ((tl.program_id(1) * tl.num_programs(0) + tile) * INPUTS + tl.arange(0, INPUTS)).to(tl.int64) * OUTPUTS
    tl.store(totals + at[:, None] + tl.arange(0, OUTPUTS)[None, :], total)


@dataclass(frozen=True)
class _Plan:
    """What is the same each time for operands of these sizes."""

    tiles: Launch
    add_up: Launch
    descriptors: tuple[tuple[list[int], ...], ...]  # of x and d: shape, strides and box; none where pointers do
    each: tuple[int, ...]
    totals: tuple[int, ...]
    gradient_strides: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def plan_of(
    operands: Operands,
    geometry: Geometry,
    samples: int,
    gradient_dtype: torch.dtype,  # for which the second kernel is compiled
    memory_format: torch.memory_format,
    fold: int,
) -> _Plan:
    x, d, dtype, device, are_aligned = operands
    shape, stride, padding, dilation, groups = geometry
    weight = torch.empty(shape, device="meta", memory_format=memory_format)
    outputs, channels, *kernel = shape
    outputs, taps = outputs // groups, kernel[0] * kernel[1]
    gradient_strides = weight.stride()
    gradient = (weight.stride(0), weight.stride(1), weight.stride(3) if kernel[1] > 1 else weight.stride(2))
    fold_channels = fold_tap = 0
    if fold:
        fold_channels, fold_tap = channels, gradient[2]
        x = fold_rows(x, fold, kernel[1], stride[1], d.shape[3])
        channels, kernel, taps = fold * kernel[1], [kernel[0], 1], kernel[0]
        stride, padding, gradient = (stride[0], 1), (0, 0), (*gradient[:2], weight.stride(2))
    elif taps == 1 and not any(padding):
        x, stride = as_pixels(x, stride, d.shape), (1, 1)
        if (x_row := as_row(x)) and (d_row := as_row(d)):
            x, d = x_row, d_row
    height, width, rows, row_length = *x.shape[2:], *d.shape[2:]
    tiling = tiling_of(channels, outputs, taps)
    size = dtype.itemsize
    boxes = all(are_aligned) and groups == 1 and max(stride) == 1 and all(loads_boxes(t, size, device) for t in (x, d))
    box_y, box_x = box_of(rows, row_length, tiling.positions, boxes)
    tiles = groups * taps * blocks(channels, tiling.inputs) * blocks(outputs, tiling.outputs)
    column_blocks, images = blocks(row_length, box_x), x.shape[0] // samples
    run = run_of(tiles, samples, images * blocks(rows, box_y) * column_blocks, tiling)
    runs = blocks(samples, run)
    sizes = {"INPUTS": tiling.inputs, "OUTPUTS": tiling.outputs}
    return _Plan(
        Launch(
            _weight_gradient,
            (tiles, runs),
            (samples, run, images, channels, outputs, height, width, rows, row_length, column_blocks, *x.strides,
             *d.strides, *padding, *dilation),
            {"stride_y": stride[0], "stride_x": stride[1], "TAPS_X": kernel[1], "TAPS": taps, "PADDED": any(padding),
             **sizes, "BOX_Y": box_y, "BOX_X": box_x, "BOXES": boxes},
            num_warps=tiling.warps,
            num_stages=stages_of(tiling, box_y * box_x, size, shared_memory(device)),
        ),
        totals.adding_up(
            tiling, tiles, runs, taps, samples, channels, outputs, gradient, fold, fold_channels, fold_tap
        ),
        (_box(x, box_y, box_x, tiling.inputs), _box(d, box_y, box_x, tiling.outputs)) if boxes else (),
        (tiles, samples),
        (runs, tiles, tiling.inputs, tiling.outputs),
        gradient_strides,
    )  # fmt: skip


def _box(t: Operand, rows: int, columns: int, channels: int) -> tuple[list[int], ...]:
    channels_last = (0, 2, 3, 1)
    return [t.shape[i] for i in channels_last], [t.strides[i] for i in channels_last], [1, rows, columns, channels]


def squares_and_sum(
    convolution: Convolution,
    samples: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` in float32, and `Σ_i c_i` of a convolution, summed up in float32 and given in `dtype`.

    Halves are multiplied as they are, float32 as TF32.
    """
    geometry = convolution.geometry
    x, d = with_adjacent_channels(convolution.x), with_adjacent_channels(convolution.d)
    fold = folds(geometry)
    if fold:
        x = padded(x, geometry.padding, fold)
    device = x.device
    plan = plan_of(Operands.of(x, d), geometry, samples, dtype, memory_format, fold)
    each = torch.empty(plan.each, dtype=torch.float32, device=device)
    of_runs = torch.empty(plan.totals, dtype=torch.float32, device=device)
    squares = torch.empty(samples, dtype=torch.float32, device=device)
    gradient = torch.empty_strided(geometry.shape, plan.gradient_strides, dtype=dtype, device=device)
    if plan.descriptors:
        of_x, of_d = plan.descriptors
        plan.tiles(device, TensorDescriptor(x, *of_x), TensorDescriptor(d, *of_d), each, of_runs)
    else:
        plan.tiles(device, x, d, each, of_runs)
    plan.add_up(device, each, of_runs, squares, gradient)
    return squares, gradient
