"""The cost rule: which form of a layer's norms is the cheapest, from shapes alone.

Costs are per sample, in multiply-adds of a matrix product, beyond what the plain weight gradient costs. Forms that
give the weight gradient too (products, grouped) replace it and pay for traffic and calls; the Gram forms come on top of
it. `P` positions, `I` inputs to a position (channels of a group × kernel taps), `O` outputs, `S` pixels of the input,
`C` channels, `G` groups, `k` the kernel's sides.

=========  ==============================  ===========================================================================
products   4·I·O + 200,000                 `c_i = d_i x_iᵀ` written, squared and added; one call for each sample
           8·I·O + 1,000,000               the same for a convolution, whose plain weight gradient is quicker
unfolding  40·I·P                          the windows of a convolution laid out as a matrix, for products
grouped    25·I·O                          samples as groups of one convolution, whose kernels are less efficient
           48·P·I·O + 35,000·O             depthwise and wider than 3, where oneDNN is slow: with the plain gradient
rows       O·(3·R·W·H + 20·W·H + 50,000)   in its place: products of R rows of W positions with H = rows of pixels
                                           × width of the kernel; 60·W·H with a stride
Gram       P²·(I + O)                      `Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`
of pixels  S²·C + P²·O + 10·G·P²·Σk        the same for a convolution: products of pixels, then sums over kernel taps
=========  ==============================  ===========================================================================

The factors were fitted to timings of all convolutions of ResNet-18, ResNet-50, DenseNet-121 and MobileNetV2, and of
depthwise ones of 16 to 576 channels, kernels of 3 to 11 and 3 to 24 pixels, on one AVX-512 core. Being off by two moves
a choice only where both forms cost about the same. On a GPU it serves what has no kernel (`kernels/`).
"""

from collections.abc import Sequence


def products(inputs: int, outputs: int) -> int:
    return 4 * inputs * outputs + 200_000


def conv_products(inputs: int, outputs: int) -> int:
    return 8 * inputs * outputs + 1_000_000


def gram(positions: int, inputs: int, outputs: int) -> int:
    return positions * positions * (inputs + outputs)


def unfolding(positions: int, inputs: int) -> int:
    return 40 * inputs * positions


def grouped(weights: int) -> int:
    return 25 * weights


def depthwise(positions: int, inputs: int, outputs: int) -> int:
    return 48 * positions * inputs * outputs + 35_000 * outputs


def depthwise_rows(rows: int, columns: int, height: int, outputs: int, strided: bool) -> int:
    return outputs * (3 * rows * columns * height + (60 if strided else 20) * columns * height + 50_000)


def gram_of_pixels(positions: int, pixels: int, channels: int, outputs: int, groups: int, kernel: Sequence[int]) -> int:
    diagonals = 10 * groups * positions * positions * sum(kernel)
    return pixels * pixels * channels + positions * positions * outputs + diagonals
