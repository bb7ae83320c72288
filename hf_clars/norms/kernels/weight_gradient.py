"""A weight gradient and the squared norm of every sample's share in it, in one pass and nothing per sample in memory.

The weight gradient of a convolution or a linear layer is a matrix product whose inner dimension runs over samples and
their positions. A program of this kernel computes tiles of it for runs of samples; at each sample's end its sum of
squares is noted and the tile added to the total, both from registers:

    Σ_i c_i    and    ‖c_i‖² = Σ_tiles Σ_elements (Σ_p x_{i,p}ᵀ d_{i,p})²

The work, all samples of the first tile, then all of the second, and so on, is dealt out to programs in equal pieces,
and a tile's pieces are added up afterwards. What is added up in which order depends on shapes alone, not on what was
found to be fast at run time: the same input gives the same bits.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import pixels_in_a_row, with_adjacent_channels

_MULTIPROCESSORS = 132  # of an H100; elsewhere pieces are not as even
_BLOCK = 32  # rows of a tile that are added up by a program


@dataclass(frozen=True)
class Tiling:
    """How a product is cut up.

    Args:
        inputs, outputs, positions: sides of a tile, and how many positions are multiplied at once.
        warps, stages: of a program, and how many loads are under way.
        programs: at a time on a multiprocessor.
    """

    inputs: int
    outputs: int
    positions: int
    warps: int
    stages: int
    programs: int


@triton.jit(
    do_not_specialize=[
        "samples", "work", "height", "width", "rows", "row_length", "padding_y", "padding_x", "dilation_y",
        "dilation_x",
    ]
)  # fmt: skip
def _weight_gradient(
    x,
    d,
    squares,
    pieces,
    samples,
    work,  # of a program: samples × tiles
    tiles,
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
    stride_y: tl.constexpr,
    stride_x: tl.constexpr,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    TAPS_X: tl.constexpr,
    TAPS: tl.constexpr,
    PADDED: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BOX_Y: tl.constexpr,
    BOX_X: tl.constexpr,
):
    """Rows of a tile are input channels at one kernel tap, columns are output channels.

    With ALL_TAPS, rows are the channels of all taps one after the other, for channels fewer than a tile's rows.
    Positions are multiplied a box of BOX_Y rows and BOX_X columns at a time.

    squares [tiles, samples]; pieces [most pieces of a tile, tiles, INPUTS, OUTPUTS].
    """
    program = tl.program_id(0)
    first = program * work
    last = tl.minimum(first + work, tiles * samples)
    output_tiles = tl.cdiv(outputs, OUTPUTS)
    row_tiles = tl.cdiv(TAPS * channels, INPUTS) if ALL_TAPS else TAPS * tl.cdiv(channels, INPUTS)
    chunks = tl.cdiv(rows, BOX_Y) * column_blocks  # of an image
    box = tl.arange(0, BOX_Y * BOX_X)
    box_row = box // BOX_X
    box_column = box % BOX_X
    for tile in range(first // samples, tl.cdiv(last, samples)):
        group = tile // (row_tiles * output_tiles)
        row_tile = tile // output_tiles % row_tiles
        o = tile % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
        if ALL_TAPS:
            weight_row = row_tile * INPUTS + tl.arange(0, INPUTS)
            tap = (weight_row // channels)[None, :]
            c = weight_row % channels
            c_inside = (weight_row < TAPS * channels)[None, :]
        else:
            tap = row_tile // tl.cdiv(channels, INPUTS)
            c = row_tile % tl.cdiv(channels, INPUTS) * INPUTS + tl.arange(0, INPUTS)
            c_inside = (c < channels)[None, :]
        o_inside = (o < outputs)[None, :]
        x_row_of_box = (box_row * stride_y)[:, None] + (tap // TAPS_X * dilation_y - padding_y)
        x_column_of_box = (box_column * stride_x)[:, None] + (tap % TAPS_X * dilation_x - padding_x)
        x_tile = x + (group * channels + c).to(tl.int64)[None, :] * x_channel
        x_tile += x_row_of_box * x_row + x_column_of_box * x_column
        d_tile = d + (group * outputs + o).to(tl.int64)[None, :] * d_channel
        d_tile += (box_row * d_row + box_column * d_column)[:, None]

        total = tl.zeros((INPUTS, OUTPUTS), tl.float32)
        own = tl.zeros((INPUTS, OUTPUTS), tl.float32)
        begin = tl.maximum(first - tile * samples, 0)
        end = tl.minimum(last - tile * samples, samples)
        # One loop over samples and their chunks, so that loads go on over a sample's end.
        image = begin * images - 1
        chunk = chunks - 1
        for _ in range((end - begin) * images * chunks):
            chunk = tl.where(chunk == chunks - 1, 0, chunk + 1)
            image = tl.where(chunk == 0, image + 1, image)
            row = chunk // column_blocks * BOX_Y
            column = chunk % column_blocks * BOX_X
            inside = (box_row < rows - row) & (box_column < row_length - column)
            x_inside = inside[:, None]
            if PADDED:
                y_in = x_row_of_box + row * stride_y
                x_in = x_column_of_box + column * stride_x
                x_inside = x_inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
            x_at = tl.cast(image, tl.int64) * x_image + (row * stride_y * x_row + column * stride_x * x_column)
            d_at = tl.cast(image, tl.int64) * d_image + (row * d_row + column * d_column)
            left = tl.load(x_tile + x_at, mask=x_inside & c_inside, other=0.0)
            right = tl.load(d_tile + d_at, mask=inside[:, None] & o_inside, other=0.0)
            own = tl.dot(tl.trans(left), right, own, input_precision="tf32")
            if chunk == chunks - 1 and image % images == images - 1:
                tl.store(squares + tile * samples + image // images, tl.sum(tl.sum(own * own, 1), 0))
                total += own
                own = tl.zeros((INPUTS, OUTPUTS), tl.float32)
        piece = program - tile * samples // work
        at = ((piece * tiles + tile) * INPUTS + tl.arange(0, INPUTS)).to(tl.int64) * OUTPUTS
        tl.store(pieces + at[:, None] + tl.arange(0, OUTPUTS)[None, :], total)


@triton.jit(do_not_specialize=["samples", "work", "tiles"])
def _add_up(
    pieces,
    gradient,
    samples,
    work,
    tiles,
    channels,
    outputs,
    TAPS: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (rows of a tile, tile): gradient [groups · outputs, channels, TAPS], the sums of the tiles' pieces."""
    tile = tl.program_id(1)
    output_tiles = tl.cdiv(outputs, OUTPUTS)
    row_tiles = tl.cdiv(TAPS * channels, INPUTS) if ALL_TAPS else TAPS * tl.cdiv(channels, INPUTS)
    group = tile // (row_tiles * output_tiles)
    row_tile = tile // output_tiles % row_tiles
    o = tile % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    tile_row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if ALL_TAPS:
        weight_row = row_tile * INPUTS + tile_row
        tap = weight_row // channels
        c = weight_row % channels
        inside = weight_row < TAPS * channels
    else:
        tap = row_tile // tl.cdiv(channels, INPUTS)
        c = row_tile % tl.cdiv(channels, INPUTS) * INPUTS + tile_row
        inside = c < channels
    total = tl.zeros((BLOCK, OUTPUTS), tl.float32)
    for piece in range((tile * samples + samples - 1) // work - tile * samples // work + 1):
        at = ((piece * tiles + tile) * INPUTS + tile_row).to(tl.int64) * OUTPUTS
        total += tl.load(pieces + at[:, None] + tl.arange(0, OUTPUTS)[None, :])
    at = ((group * outputs + o).to(tl.int64)[None, :] * channels + c[:, None]) * TAPS
    at += tap[:, None] if ALL_TAPS else tap
    tl.store(gradient + at, total.to(gradient.dtype.element_ty), mask=inside[:, None] & (o < outputs)[None, :])


def squares_and_sum(
    x: Tensor,
    d: Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    samples: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """`‖c_i‖²` `[samples]` in float32, and `Σ_i c_i` of a convolution, summed up in float32 and given in `dtype`.

    Args:
        x, d: input `[N, C, H, W]` and output derivative `[N, O, H', W']`, of one type: half precision, or float32,
            which is multiplied as TF32. Rows `k·i … k·(i+1)−1` are sample i's.
        shape: of the weight, `[O, C / groups, K, L]`.
    """
    outputs, channels, *kernel = shape
    outputs, taps = outputs // groups, kernel[0] * kernel[1]
    x, d = with_adjacent_channels(x), with_adjacent_channels(d)
    height, width, rows, row_length = *x.shape[2:], *d.shape[2:]
    padded = any(padding)
    if taps == 1 and max(stride) == 1 and not padded and pixels_in_a_row(x) and pixels_in_a_row(d):
        rows, row_length = 1, rows * row_length
    tiling = _tiling(channels, outputs, taps)
    all_taps = taps > 1 and channels <= tiling.inputs // 2
    box_x = min(tiling.positions, triton.next_power_of_2(row_length))
    row_tiles = triton.cdiv(taps * channels, tiling.inputs) if all_taps else taps * triton.cdiv(channels, tiling.inputs)
    tiles = groups * row_tiles * triton.cdiv(outputs, tiling.outputs)
    work = triton.cdiv(tiles * samples, _MULTIPROCESSORS * tiling.programs)
    most_pieces = (samples - 2) // work + 2  # samples that begin with the last of a program's work
    squares = x.new_empty((tiles, samples), dtype=torch.float32)
    pieces = x.new_empty((most_pieces, tiles, tiling.inputs, tiling.outputs), dtype=torch.float32)
    gradient = x.new_empty(shape, dtype=dtype)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _weight_gradient[(triton.cdiv(tiles * samples, work),)](
            x, d, squares, pieces, samples, work, tiles, x.shape[0] // samples, channels, outputs, height, width, rows,
            row_length, triton.cdiv(row_length, box_x), *x.stride(), *d.stride(), *stride, *padding, *dilation,
            TAPS_X=kernel[1], TAPS=taps, PADDED=padded, ALL_TAPS=all_taps, INPUTS=tiling.inputs,
            OUTPUTS=tiling.outputs, BOX_Y=tiling.positions // box_x, BOX_X=box_x,
            num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
        _add_up[(tiling.inputs // _BLOCK, tiles)](
            pieces, gradient, samples, work, tiles, channels, outputs, TAPS=taps, ALL_TAPS=all_taps,
            INPUTS=tiling.inputs, OUTPUTS=tiling.outputs, BLOCK=_BLOCK,
        )  # fmt: skip
    return squares.sum(0), gradient


def _tiling(channels: int, outputs: int, taps: int) -> Tiling:
    if taps > 1 and channels <= 32:  # all taps' channels side by side
        return Tiling(64, 64, 64, warps=4, stages=4, programs=2)
    wide = 128 if channels > 64 else 64
    if outputs <= 64:
        return Tiling(wide, 32 if outputs <= 32 else 64, 64, warps=4, stages=4, programs=2)
    return Tiling(wide, 128, 64, warps=8, stages=3, programs=1) if wide == 128 else Tiling(64, 128, 64, 4, 3, 2)
