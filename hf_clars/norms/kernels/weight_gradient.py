"""A weight gradient and the squared norm of every sample's share in it, in one pass and nothing per sample in memory.

The weight gradient of a convolution or a linear layer is a matrix product whose inner dimension runs over samples and
their positions. A program of this kernel computes one tile of it for a run of samples; at each sample's end its sum of
squares is noted and the tile added to the total, both from registers:

    Σ_i c_i    and    ‖c_i‖² = Σ_tiles Σ_elements (Σ_p x_{i,p}ᵀ d_{i,p})²

What is added up, in which order, depends on shapes alone: the same input gives the same bits.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import pixels_in_a_row, with_adjacent_channels

_PROGRAMS = 264  # at least so many, where there are samples enough: two for each multiprocessor of an H100
_SHORT = 1024  # positions; the next sample's are loaded while this one's tile is squared and added


@dataclass(frozen=True)
class Tiling:
    """How a product is cut up.

    Args:
        inputs, outputs, positions: sides of a tile, and how many positions are multiplied at once.
        warps, stages: of a program, and how many loads are under way.
        flatten: whether loads go on over the end of a sample.
    """

    inputs: int
    outputs: int
    positions: int
    warps: int
    stages: int
    flatten: bool


@triton.jit(
    do_not_specialize=[
        "samples", "run", "height", "width", "positions", "row_length", "padding_y", "padding_x", "dilation_y",
        "dilation_x",
    ]
)  # fmt: skip
def _weight_gradient(
    x,
    d,
    squares,
    totals,
    samples,
    run,  # samples of one program
    images,  # of a sample
    channels,
    outputs,
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
    POINTWISE: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    POSITIONS: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Program (tile, run, group). Rows of a tile are input channels at one kernel tap, columns are output channels.

    With ALL_TAPS, rows are the channels of all taps one after the other, for channels fewer than a tile's rows.
    x [group · channels per image], d [group · outputs per image]; squares [groups · tiles, samples];
    totals [runs, groups, TAPS, channels, outputs].
    """
    output_tiles = tl.cdiv(outputs, OUTPUTS)
    input_tiles = tl.cdiv(channels, INPUTS)
    tile = tl.program_id(0)
    group = tl.program_id(2)
    first = tl.program_id(1) * run
    last = tl.minimum(first + run, samples)
    o = tile % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    if ALL_TAPS:
        weight_row = tile // output_tiles * INPUTS + tl.arange(0, INPUTS)
        tap = (weight_row // channels)[None, :]
        c = weight_row % channels
        c_inside = weight_row < TAPS * channels
    else:
        tap = tile // (input_tiles * output_tiles)
        c = (tile // output_tiles) % input_tiles * INPUTS + tl.arange(0, INPUTS)
        weight_row = tap * channels + c
        c_inside = c < channels
    shift_y = tap // TAPS_X * dilation_y - padding_y
    shift_x = tap % TAPS_X * dilation_x - padding_x
    chunks = tl.cdiv(positions, POSITIONS)  # of an image
    x += (group * channels + c).to(tl.int64)[None, :] * x_channel
    d += (group * outputs + o).to(tl.int64)[None, :] * d_channel
    o_inside = (o < outputs)[None, :]
    squares += (group * tl.num_programs(0) + tile).to(tl.int64) * samples

    total = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    for sample in tl.range(first, last, flatten=FLATTEN):
        own = tl.zeros((INPUTS, OUTPUTS), tl.float32)
        for step in range(images * chunks):
            image = (sample * images + step // chunks).to(tl.int64)
            p = step % chunks * POSITIONS + tl.arange(0, POSITIONS)
            inside = p < positions
            if POINTWISE:  # positions are pixels, and stand in a row
                x_at = (p * x_column)[:, None]
                d_at = p * d_column
                x_inside = inside[:, None]
            else:
                row = p // row_length
                column = p % row_length
                y_in = (row * stride_y)[:, None] + shift_y
                x_in = (column * stride_x)[:, None] + shift_x
                x_inside = inside[:, None] & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
                x_at = y_in * x_row + x_in * x_column
                d_at = row * d_row + column * d_column
            left = tl.load(x + image * x_image + x_at, mask=x_inside & c_inside[None, :], other=0.0)
            right = tl.load(d + image * d_image + d_at[:, None], mask=inside[:, None] & o_inside, other=0.0)
            own = tl.dot(tl.trans(left), right, own, input_precision="tf32")
        tl.store(squares + sample, tl.sum(tl.sum(own * own, 1), 0))
        total += own
    at = (tl.program_id(1) * tl.num_programs(2) + group).to(tl.int64) * TAPS * channels + weight_row
    tl.store(totals + at[:, None] * outputs + o[None, :], total, mask=c_inside[:, None] & o_inside)


def squares_and_sum(
    x: Tensor,
    d: Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` and `Σ_i c_i` of a convolution, both float32.

    Args:
        x, d: input `[N, C, H, W]` and output derivative `[N, O, H', W']`, of one type: half precision, or float32,
            which is multiplied as TF32. Rows `k·i … k·(i+1)−1` are sample i's.
        shape: of the weight, `[O, C / groups, K, L]`.
    """
    outputs, channels, *kernel = shape
    outputs, taps = outputs // groups, kernel[0] * kernel[1]
    x, d = with_adjacent_channels(x), with_adjacent_channels(d)
    height, width = x.shape[2:]
    positions = d.shape[2] * d.shape[3]
    pointwise = taps == 1 and max(stride) == 1 and not any(padding) and pixels_in_a_row(x) and pixels_in_a_row(d)
    tiling = _tiling(channels, outputs, positions)
    all_taps = taps > 1 and channels <= tiling.inputs // 2
    rows = triton.cdiv(taps * channels, tiling.inputs) if all_taps else taps * triton.cdiv(channels, tiling.inputs)
    tiles = rows * triton.cdiv(outputs, tiling.outputs)
    run = triton.cdiv(samples, min(samples, triton.cdiv(_PROGRAMS, tiles * groups)))
    runs = triton.cdiv(samples, run)
    squares = x.new_empty((groups * tiles, samples), dtype=torch.float32)
    totals = x.new_empty((runs, groups, taps, channels, outputs), dtype=torch.float32)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _weight_gradient[(tiles, runs, groups)](
            x, d, squares, totals, samples, run, x.shape[0] // samples, channels, outputs, height, width, positions,
            d.shape[3], *x.stride(), *d.stride(), *stride, *padding, *dilation,
            TAPS_X=kernel[1], TAPS=taps, POINTWISE=pointwise, ALL_TAPS=all_taps,
            INPUTS=tiling.inputs, OUTPUTS=tiling.outputs, POSITIONS=tiling.positions, FLATTEN=tiling.flatten,
            num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
    total = totals.sum(0) if runs > 1 else totals[0]
    return squares.sum(0), total.permute(0, 3, 2, 1).reshape(shape)


def _tiling(channels: int, outputs: int, positions: int) -> Tiling:
    """By shapes alone, and not by trying at run time: what is added up in another order has other bits."""
    wide = _power(channels, 64, 128)
    if outputs <= 32 or wide == 64:
        return Tiling(wide, _power(outputs, 16, 128), 64, warps=4, stages=4, flatten=positions <= _SHORT)
    if outputs <= 64:
        return Tiling(wide, 64, 64, warps=4, stages=4, flatten=positions <= _SHORT)
    return Tiling(wide, 128, 64, warps=8, stages=3, flatten=positions <= _SHORT)


def _power(size: int, smallest: int, largest: int) -> int:
    return min(largest, max(smallest, triton.next_power_of_2(size)))
