"""The cost rule: which form of a layer's norms is the cheapest, from shapes alone.

Costs are per sample, in multiply-adds of a matrix product, beyond `P·I·O`, which all forms and the plain weight
gradient take. The Gram forms leave the weight gradient to autograd, and the price of its call is in theirs. `P`
positions, `I` inputs to a position (channels of a group × kernel taps), `O` outputs, `S` pixels of the input, `C` its
channels, `G` groups, `k` the kernel's sides, `T = P·O + S·C` numbers in input and output.

=========  ===============================  ==========================================================================
of a convolution whose kernel is one pixel
products   60,000 + 40·I·O + P·I·O/6 − 8·T  `c_i = d_i x_iᵀ` written, squared and added
grouped    320,000 + 44·I·O + P·I·O/14      samples as groups of one convolution
Gram       180,000 + P²·(C + O + 98·G)      `Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`
           + 32·T
of any other
products   330,000 + 40·I·O + 57·I·P        the windows of the input are laid out as a matrix first
           − 15·T
grouped    420,000 + 40·I·O + P·I·O/8
           + 48·T
of pixels  410,000 + 2·S²·C + 2·P²·O        the Gram form from products of pixels, then sums over kernel taps
           + 32·G·P²·Σk + 14·T
of a depthwise one
taps       180,000 + 23,000·I + 18·P·I·O    one tap after the other
           + 45·S·C
and of one that is wider than 3, or than its images, for which oneDNN is slow: with the plain gradient
grouped    48·P·I·O + 35,000·O
rows       O·(3·R·W·H + 20·W·H + 50,000)    products of R rows of W positions with H = rows of pixels × width of the
                                            kernel; 60·W·H with a stride
of a linear layer
products   60,000 + 45·I·O
Gram       100,000 + P²·(I + O + 98)        40,000 + 4·(I + O) of one position
           + 32·P·(I + O)
=========  ===============================  ==========================================================================

A Gram form takes 150,000 more for each of several groups. The factors were fitted to timings, in batches of 16, of the
layers of architectures of all kinds (`recipes/benchmarks/architectures.py`, without those that are held out) on one
AVX2 core, where 1,000,000 multiply-adds take 33 µs; those of depthwise layers on AVX-512 cores, and there the numbers
of `c_i`, `I·O`, cost less: on AMD's 4 in place of 45 and 8 of 40, on Intel's 17 of both while `c_i` stays in the cache,
and 25 in place of 40 of grouped ones. Being off by two moves a choice only where both forms cost about the same. On a
GPU it serves what has no kernel (`kernels/`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

CPU: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # what torch 2.11 may not tell
WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
OF_AMD = "AMD" in CPU.get("cpu_name", "")
CACHED = (CPU.get("l2_cache_size") or 512 << 10) // 2  # bytes that stay in the cache until they are read again
_LINEAR, _POINTWISE, _WINDOWS, _GROUPED = (4, 8, 8, 25) if WIDE else (45, 40, 40, 40)  # for each number of `c_i`


def products(inputs: int, outputs: int) -> int:
    return 60_000 + _written(inputs * outputs, _LINEAR)


def _written(weights: int, price: int) -> int:
    """Products of so many numbers, at that price for each; on Intel's CPUs with AVX-512 it depends on the cache."""
    if WIDE and not OF_AMD:
        price = 17 if 4 * weights <= CACHED else 45
    return price * weights


def gram(positions: int, inputs: int, outputs: int) -> int:
    if positions == 1:
        return 40_000 + 4 * (inputs + outputs)
    return 100_000 + positions**2 * (inputs + outputs + 98) + 32 * positions * (inputs + outputs)


@dataclass(frozen=True)
class Convolution:
    """A convolution whose forms are priced.

    Args:
        shape: of its weight.
        positions, pixels: of the output and of the input of one sample.
        pointwise: its kernel is one pixel, and nothing is padded.
    """

    shape: tuple[int, ...]
    groups: int
    positions: int
    pixels: int
    pointwise: bool

    @property
    def channels(self) -> int:
        return self.groups * self.shape[1]

    @property
    def inputs(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs

    @property
    def numbers(self) -> int:
        return self.positions * self.outputs + self.pixels * self.channels

    def products(self) -> int:
        if self.pointwise:
            return 60_000 + _written(self.weights, _POINTWISE) + self.positions * self.weights // 6 - 8 * self.numbers
        return 330_000 + _WINDOWS * self.weights + 57 * self.inputs * self.positions - 15 * self.numbers

    def grouped(self) -> int:
        if self.pointwise:
            return 320_000 + (_GROUPED + 4) * self.weights + self.positions * self.weights // 14
        return 420_000 + _GROUPED * self.weights + self.positions * self.weights // 8 + 48 * self.numbers

    def grouped_depthwise(self) -> int:
        return 48 * self.positions * self.weights + 35_000 * self.outputs

    def taps(self) -> int:
        return 180_000 + 23_000 * self.inputs + 18 * self.positions * self.weights + 45 * self.pixels * self.channels

    def rows(self, rows: int, columns: int, height: int, *, strided: bool) -> int:
        edge = (60 if strided else 20) * columns * height
        return self.outputs * (3 * rows * columns * height + edge + 50_000)

    def gram(self) -> int:
        squared, several = self.positions**2, 150_000 * self.groups if self.groups > 1 else 0
        if self.pointwise:
            products = squared * (self.channels + self.outputs + 98 * self.groups)
            return 180_000 + several + products + 32 * self.numbers
        products = 2 * self.pixels**2 * self.channels + 2 * squared * self.outputs
        diagonals = 32 * self.groups * squared * sum(self.shape[2:])
        return 410_000 + several + products + diagonals + 14 * self.numbers
