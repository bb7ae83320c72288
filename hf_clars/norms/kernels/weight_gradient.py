"""A weight gradient and the squared norm of every sample's share in it, in one pass and nothing per sample in memory.

The weight gradient of a convolution or a linear layer is a matrix product whose inner dimension runs over samples and
their positions. A program of this kernel computes one tile of it for a run of samples; at each sample's end its sum of
squares is noted and the tile added to the total, both from registers:

    Σ_i c_i    and    ‖c_i‖² = Σ_tiles Σ_elements (Σ_p x_{i,p}ᵀ d_{i,p})²

The totals of the runs are added up afterwards. What is added up in which order depends on shapes alone, not on what was
found to be fast at run time: the same input gives the same bits.
"""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .layout import loads_boxes, pixels_in_a_row, shared_memory, with_adjacent_channels

_MULTIPROCESSORS = 132  # of an H100; elsewhere work is not as even
_TOTALS = 64 << 20  # bytes, at most, of the runs' totals
_REST = 2 << 10  # bytes of shared memory for sums and barriers
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
        "samples", "run", "height", "width", "rows", "row_length", "padding_y", "padding_x", "dilation_y", "dilation_x",
    ]
)  # fmt: skip
def _weight_gradient(
    x,
    d,
    squares,
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
    BOXES: tl.constexpr,
):
    """Program (tile, run). Rows of a tile are input channels at one kernel tap, columns are output channels.

    With ALL_TAPS, rows are the channels of all taps one after the other, for channels fewer than a tile's rows.
    Positions are multiplied a box of BOX_Y rows and BOX_X columns at a time. With BOXES, `x` and `d` are descriptors of
    tensors `[N, rows, columns, channels]`, of which the hardware loads boxes, with zeros for what is outside.

    squares [tiles, samples]; totals [runs, tiles, INPUTS, OUTPUTS].
    """
    tile = tl.program_id(0)
    output_tiles = tl.cdiv(outputs, OUTPUTS)
    input_tiles = tl.cdiv(channels, INPUTS)
    row_tiles = tl.cdiv(TAPS * channels, INPUTS) if ALL_TAPS else TAPS * input_tiles
    group = tile // (row_tiles * output_tiles)
    row_tile = tile // output_tiles % row_tiles
    first_o = tile % output_tiles * OUTPUTS
    o = first_o + tl.arange(0, OUTPUTS)
    if ALL_TAPS:
        weight_row = row_tile * INPUTS + tl.arange(0, INPUTS)
        tap = (weight_row // channels)[None, :]
        c = weight_row % channels
        c_inside = (weight_row < TAPS * channels)[None, :]
    else:
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
            tl.store(squares + tile * samples + image // images, tl.sum(tl.sum(own * own, 1), 0))
            total += own
            own = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    at = ((tl.program_id(1) * tl.num_programs(0) + tile) * INPUTS + tl.arange(0, INPUTS)).to(tl.int64) * OUTPUTS
    tl.store(totals + at[:, None] + tl.arange(0, OUTPUTS)[None, :], total)


@triton.jit(do_not_specialize=["runs"])
def _add_up(
    totals,
    gradient,
    runs,
    channels,
    outputs,
    TAPS: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (rows of a tile, tile): gradient [groups · outputs, channels, TAPS], the sums of the runs' totals."""
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
    for run in range(runs):
        at = ((run * tl.num_programs(1) + tile) * INPUTS + tile_row).to(tl.int64) * OUTPUTS
        total += tl.load(totals + at[:, None] + tl.arange(0, OUTPUTS)[None, :])
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
    if taps == 1 and not any(padding):
        x, stride = x[:, :, :: stride[0], :: stride[1]][:, :, : d.shape[2], : d.shape[3]], (1, 1)
        if pixels_in_a_row(x) and pixels_in_a_row(d):
            x, d = x.flatten(2).unsqueeze(2), d.flatten(2).unsqueeze(2)
    height, width, rows, row_length = *x.shape[2:], *d.shape[2:]
    tiling = _tiling(channels, outputs, taps)
    all_taps = taps > 1 and channels <= tiling.inputs // 2
    box_x = min(tiling.positions, triton.next_power_of_2(row_length))
    box_y = tiling.positions // box_x
    row_tiles = triton.cdiv(taps * channels, tiling.inputs) if all_taps else taps * triton.cdiv(channels, tiling.inputs)
    tiles = groups * row_tiles * triton.cdiv(outputs, tiling.outputs)
    column_blocks = triton.cdiv(row_length, box_x)
    run = _run(tiles, samples, x.shape[0] // samples * triton.cdiv(rows, box_y) * column_blocks, tiling)
    runs = triton.cdiv(samples, run)
    squares = x.new_empty((tiles, samples), dtype=torch.float32)
    totals = x.new_empty((runs, tiles, tiling.inputs, tiling.outputs), dtype=torch.float32)
    gradient = x.new_empty(shape, dtype=dtype)
    boxes = groups == 1 and not all_taps and max(stride) == 1 and loads_boxes(x) and loads_boxes(d)
    operands = (_boxes(x, box_y, box_x, tiling.inputs), _boxes(d, box_y, box_x, tiling.outputs)) if boxes else (x, d)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _weight_gradient[(tiles, runs)](
            *operands, squares, totals, samples, run, x.shape[0] // samples, channels, outputs, height, width, rows,
            row_length, column_blocks, *x.stride(), *d.stride(), *stride, *padding, *dilation, TAPS_X=kernel[1],
            TAPS=taps, PADDED=any(padding), ALL_TAPS=all_taps, INPUTS=tiling.inputs, OUTPUTS=tiling.outputs,
            BOX_Y=box_y, BOX_X=box_x, BOXES=boxes, num_warps=tiling.warps,
            num_stages=_stages(tiling, x.element_size(), shared_memory(x.device)),
        )  # fmt: skip
        _add_up[(tiling.inputs // _BLOCK, tiles)](
            totals, gradient, runs, channels, outputs, TAPS=taps, ALL_TAPS=all_taps, INPUTS=tiling.inputs,
            OUTPUTS=tiling.outputs, BLOCK=_BLOCK,
        )  # fmt: skip
    return squares.sum(0), gradient


def _boxes(t: Tensor, rows: int, columns: int, channels: int) -> TensorDescriptor:
    t = t.permute(0, 2, 3, 1)
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [1, rows, columns, channels])


def _tiling(channels: int, outputs: int, taps: int) -> Tiling:
    """The fastest, or nearly so, on an H100, over the convolutions of ResNet-50, DenseNet-121 and MobileNetV2, ViT-S
    and GPT-2 in bfloat16."""
    if channels <= 64 and outputs <= 64 and taps == 1:
        return Tiling(64, 32, 64, warps=4, stages=4, programs=4)
    if outputs <= 32 and channels > 64:
        return Tiling(128, 32, 64, warps=4, stages=4, programs=3)
    if channels <= 64 or outputs <= 64:
        return Tiling(64, 64, 64, warps=4, stages=4, programs=3)
    return Tiling(128, 128, 64, warps=8, stages=4, programs=1)


def _stages(tiling: Tiling, element_size: int, memory: int) -> int:
    """The tiling's, or as many as find room in a multiprocessor's shared memory; consumer GPUs have less."""
    stage = (tiling.inputs + tiling.outputs) * tiling.positions * element_size
    return max(2, min(tiling.stages, (memory - _REST) // stage))


@functools.lru_cache(maxsize=4096)
def _run(tiles: int, samples: int, chunks: int, tiling: Tiling) -> int:
    """Samples of a program: so that programs are as long as they are few rounds of the whole GPU.

    All tiles of a run begin together, and find their samples in the cache.
    """
    at_a_time = _MULTIPROCESSORS * tiling.programs
    most = max(1, min(samples, 4 * at_a_time // tiles + 1, _TOTALS // (4 * tiles * tiling.inputs * tiling.outputs)))

    def price(runs: int) -> float:  # in samples; a total takes as long as six chunks
        return math.ceil(tiles * runs / at_a_time) * (math.ceil(samples / runs) + 6 / chunks)

    return math.ceil(samples / min(range(1, most + 1), key=price))
