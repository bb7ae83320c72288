"""How the product that is a weight gradient is cut up: tiles of the weight, boxes of positions, runs of samples.

What is added up in which order depends on this, and this on shapes alone, not on what was found to be fast at run time:
the same input gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MULTIPROCESSORS = 132  # of an H100; elsewhere work is not as even
_TOTALS = 64 << 20  # bytes, at most, of the runs' totals
_REST = 2 << 10  # bytes of shared memory for sums and barriers
_LONG_ROW = 32  # positions that are worth a multiplication of their own


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


def blocks(length: int, size: int) -> int:
    """How many of `size` cover `length`."""
    return -(-length // size)


def power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def tiling_of(channels: int, outputs: int, taps: int) -> Tiling:
    """The fastest, or nearly so, on an H100, over the convolutions of ResNet-50, DenseNet-121 and MobileNetV2, ViT-S
    and GPT-2 in bfloat16; not measured yet for 32 channels and fewer."""
    if channels <= 32 and outputs > 32 and taps > 1:
        return Tiling(32, 64, 64, warps=4, stages=4, programs=4)
    if channels <= 64 and outputs <= 64 and taps == 1:
        return Tiling(64, 32, 64, warps=4, stages=4, programs=4)
    if outputs <= 32 and channels > 64:
        return Tiling(128, 32, 64, warps=4, stages=4, programs=3)
    if channels <= 64 or outputs <= 64:
        return Tiling(64, 64, 64, warps=4, stages=4, programs=3)
    return Tiling(128, 128, 64, warps=8, stages=4, programs=1)


def stages_of(tiling: Tiling, positions: int, element_size: int, memory: int) -> int:
    """As many boxes of `positions` as have those of the tiling's stages, or as find room in a multiprocessor's shared
    memory; consumer GPUs have less."""
    stage = (tiling.inputs + tiling.outputs) * positions * element_size
    return max(2, min(tiling.stages * tiling.positions // positions, (memory - _REST) // stage))


def box_of(rows: int, row_length: int, positions: int, boxes: bool) -> tuple[int, int]:
    """Rows and columns of a box, of at most `positions` and mostly as many.

    From boxes of one row that the hardware loads (`boxes`), tensor cores take both operands where they were loaded;
    from others one goes through registers, which takes two thirds longer. Otherwise, those of which the fewest cover
    an image, with the longest rows among equals.
    """
    longest = min(positions, power_of_two(row_length))
    if boxes:
        return (1 if longest >= _LONG_ROW else positions // longest), longest
    columns = [1 << k for k in reversed(range(longest.bit_length()))]
    best = min(columns, key=lambda c: blocks(row_length, c) * blocks(rows, positions // c))
    return positions // best, best


def run_of(tiles: int, samples: int, chunks: int, tiling: Tiling) -> int:
    """Samples of a program: so that programs are as long as they are few rounds of the whole GPU.

    All tiles of a run begin together, and find their samples in the cache.

    Args:
        chunks: boxes of a sample.
    """
    at_a_time = MULTIPROCESSORS * tiling.programs
    most = max(1, min(samples, 4 * at_a_time // tiles + 1, _TOTALS // (4 * tiles * tiling.inputs * tiling.outputs)))

    def price(runs: int) -> float:  # in samples; a total takes as long as six chunks
        return math.ceil(tiles * runs / at_a_time) * (math.ceil(samples / runs) + 6 / chunks)

    return math.ceil(samples / min(range(1, most + 1), key=price))
