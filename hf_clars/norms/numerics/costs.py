"""The cost rule: which form of a layer's norms is the cheapest, from shapes alone.

Costs are per sample, in multiply-adds of a matrix product, beyond what the plain weight gradient costs. Forms that
give the weight gradient too (products, grouped) replace it and pay for traffic and calls; the Gram forms come on top of
it. `P` positions, `I` inputs to a position (channels of a group × kernel taps), `O` outputs, `S` pixels of the input,
`C` channels, `G` groups, `k` the kernel's sides.

==========  ==========================  ==================================================================
products    4·I·O + 200,000             `c_i = d_i x_iᵀ` written, squared and added; one call for each sample
            8·I·O + 1,000,000           the same for a convolution, whose plain weight gradient is quicker
unfolding   40·I·P                      the windows of a convolution laid out as a matrix, for products
grouped     25·I·O                      samples as groups of one convolution, whose kernels are less efficient
Gram        P²·(I + O)                  `Σ_{p,q} ⟨x_p, x_q⟩ ⟨d_p, d_q⟩`
depthwise   90·P·I·O                    the plain weight gradient with kernels above 3 or dilation, on a CPU
rows        5·O·R·H·W + 10·O·K·R        it replaces that: products of rows, for R rows of positions
of pixels   S²·C + P²·O + 10·G·P²·Σk    the same for a convolution: products of pixels, then sums over kernel taps
==========  ==========================  ==================================================================

The factors were fitted to timings of all convolutions of ResNet-18, ResNet-50, DenseNet-121 and MobileNetV2 on one
AVX-512 core. Being off by two moves a choice only where both forms cost about the same. On a GPU it serves what has no
kernel (`kernels/`).
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
    return 90 * positions * inputs * outputs


def depthwise_rows(rows: int, columns: int, height: int, outputs: int, taps: int) -> int:
    return 5 * outputs * rows * columns * height + 10 * outputs * taps * rows


def gram_of_pixels(positions: int, pixels: int, channels: int, outputs: int, groups: int, kernel: Sequence[int]) -> int:
    diagonals = 10 * groups * positions * positions * sum(kernel)
    return pixels * pixels * channels + positions * positions * outputs + diagonals
