"""Adds up what the programs of `weight_gradient.py` leave: a total of each run of samples, and squares of each tile."""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import Launch
from .tiling import Tiling, blocks

_ROWS = 8  # of a tile that are added up by a program: as many weights lie side by side in a sector of memory
_ELEMENTS = 4096  # loaded at a time: many, for there are hundreds of runs where a layer has few weights
_SAMPLES, _TILES = 128, 32  # whose squares are added up by a program, and how many tiles at a time


@triton.jit(do_not_specialize=["runs", "tiles", "taps", "samples", "channels", "outputs", "gradient_tap"])
def _add_up(
    each,
    totals,
    squares,
    gradient,
    runs,
    tiles,
    taps,
    samples,
    channels,
    outputs,
    gradient_output,
    gradient_channel,
    gradient_tap,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FOLD: tl.constexpr,
    FOLD_CHANNELS: tl.constexpr,
    FOLD_TAP: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
    SAMPLES: tl.constexpr,
    TILE_BLOCK: tl.constexpr,
):
    """Program (rows of a tile) for each, tile by tile: gradient, the sum of the runs' totals. Then program (samples):
    squares [samples], the sum over the tiles of each.

    With FOLD, the channels of a row of the kernel stand side by side, FOLD a tap, of which FOLD_CHANNELS are there.
    """
    block = tl.program_id(0)
    if block >= tiles * (INPUTS // ROWS):
        sample = (block - tiles * (INPUTS // ROWS)) * SAMPLES + tl.arange(0, SAMPLES)
        square = tl.zeros((SAMPLES,), tl.float32)
        for first in range(0, tiles, TILE_BLOCK):
            tile = first + tl.arange(0, TILE_BLOCK)
            inside = (tile < tiles)[:, None] & (sample < samples)[None, :]
            square += tl.sum(tl.load(each + tile[:, None] * samples + sample[None, :], mask=inside, other=0.0), 0)
        tl.store(squares + sample, square, mask=sample < samples)
    else:
        tile = block // (INPUTS // ROWS)
        tile_row = block % (INPUTS // ROWS) * ROWS + tl.arange(0, ROWS)
        output_tiles = tl.cdiv(outputs, OUTPUTS)
        input_tiles = tl.cdiv(channels, INPUTS)
        group = tile // (taps * input_tiles * output_tiles)
        row_tile = tile // output_tiles % (taps * input_tiles)
        tap = row_tile // input_tiles
        c = row_tile % input_tiles * INPUTS + tile_row
        o = tile % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
        inside = c < channels
        of_tile = totals + tile_row[None, :, None] * OUTPUTS + tl.arange(0, OUTPUTS)[None, None, :]
        total = tl.zeros((ROWS, OUTPUTS), tl.float32)
        for first in range(0, runs, RUNS):
            run = (first + tl.arange(0, RUNS))[:, None, None]
            at = (run * tiles + tile).to(tl.int64) * (INPUTS * OUTPUTS)
            total += tl.sum(tl.load(of_tile + at, mask=run < runs, other=0.0), 0)
        if FOLD:
            inside = inside & (c % FOLD < FOLD_CHANNELS)
            c = c % FOLD * gradient_channel + c // FOLD * FOLD_TAP
        else:
            c = c * gradient_channel
        at = (group * outputs + o).to(tl.int64)[None, :] * gradient_output + c[:, None] + tap * gradient_tap
        tl.store(gradient + at, total.to(gradient.dtype.element_ty), mask=inside[:, None] & (o < outputs)[None, :])


def adding_up(
    tiling: Tiling,
    tiles: int,
    runs: int,
    taps: int,
    samples: int,
    channels: int,
    outputs: int,
    gradient_strides: tuple[int, ...],
    fold: int,
    fold_channels: int,
    fold_tap: int,
) -> Launch:
    """For tensors each, totals, squares and gradient.

    Args:
        taps, channels, outputs: of a group's weight, as the tiles are of it.
        gradient_strides: from one output, channel and tap to the next.
        fold: channels of a tap where those of a row of taps count as one tap's, else 0; `fold_channels` of them are the
            weight's, and `fold_tap` lies between these taps in the gradient.
    """
    return Launch(
        _add_up,
        (tiles * (tiling.inputs // _ROWS) + blocks(samples, _SAMPLES),),
        (runs, tiles, taps, samples, channels, outputs, *gradient_strides),
        {"INPUTS": tiling.inputs, "OUTPUTS": tiling.outputs, "FOLD": fold, "FOLD_CHANNELS": fold_channels,
         "FOLD_TAP": fold_tap, "ROWS": _ROWS, "RUNS": _ELEMENTS // (_ROWS * tiling.outputs), "SAMPLES": _SAMPLES,
         "TILE_BLOCK": _TILES},
    )  # fmt: skip
