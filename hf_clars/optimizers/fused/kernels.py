"""Eq. 4 and its learning rates in Triton: one launch for all tensors of a bucket, each read and written once.

A program takes `CHUNK` elements of one tensor. What belongs to which is in tables on the device, K tensors each:

============  ======================================================================================================
`addresses`   `[4, K]` int64: of w, g, u and D. g = 0: the tensor rests. D = 0: its place is taken by `‖g‖`
`layout`      `[K + K + 1 + chunks]` int64: elements of each tensor; the first chunk of each, and behind the last; the
              tensor of each chunk
`partials`    `[chunks]` float32: the sum of squares over each chunk
============  ======================================================================================================

Tensors are walked through as they lie in memory, so w, g and u must lie alike and have no gaps. `DTYPE` is of all
three; arithmetic is float32. `ALIGNED`: all addresses are multiples of 16 bytes, so that 16 are loaded at a time.

The norm of w has the same bits whether `update` or `sums_of_squares` took its partial sums, for one `ALIGNED`: the
same elements, rounded to `DTYPE`, are added in the same order.
"""

import triton
import triton.language as tl

CHUNK = 2048
PARTIALS = 1024  # of a tensor, that are added up at a time
WARPS = 8


@triton.jit
def _chunk(layout, tensors, CHUNK: tl.constexpr):
    """The tensor that this program has a chunk of, where the chunk begins, and how many elements it has from there."""
    k = tl.load(layout + 2 * tensors + 1 + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(layout + tensors + k)) * CHUNK
    return k, start, tl.load(layout + k) - start


@triton.jit
def _pointers(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr):
    base = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base + start + tl.arange(0, CHUNK)


@triton.jit
def _load(pointers, left, FULL: tl.constexpr, CHUNK: tl.constexpr):
    if FULL:
        return tl.load(pointers).to(tl.float32)
    return tl.load(pointers, mask=tl.arange(0, CHUNK) < left, other=0.0).to(tl.float32)


@triton.jit
def _store(pointers, values, left, FULL: tl.constexpr, CHUNK: tl.constexpr):
    if FULL:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=tl.arange(0, CHUNK) < left)


@triton.jit
def _moved(
    w, g, u, left, gamma, momentum, decay,
    MOMENTUM: tl.constexpr, DECAY: tl.constexpr, FULL: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Eq. 4 for one chunk: `m = −γ (g + λ w)`, `u ← m + β u`, `w ← w + m + β u`. The sum of squares of the new w."""
    weight = _load(w, left, FULL, CHUNK)
    pull = _load(g, left, FULL, CHUNK)
    if DECAY:
        pull += decay * weight
    move = -gamma * pull
    weight += move
    if MOMENTUM:
        displacement = move + momentum * _load(u, left, FULL, CHUNK)
        _store(u, displacement.to(u.dtype.element_ty), left, FULL, CHUNK)
        weight += momentum * displacement
    rounded = weight.to(w.dtype.element_ty)
    _store(w, rounded, left, FULL, CHUNK)
    rounded = rounded.to(tl.float32)
    if not FULL:
        rounded = tl.where(tl.arange(0, CHUNK) < left, rounded, 0.0)  # an infinite γ makes NaN of what is not there
    return tl.sum(rounded * rounded, 0)


@triton.jit(do_not_specialize=["tensors"])
def update(
    addresses, layout, tensors, gammas, partials, momentum, decay,
    MOMENTUM: tl.constexpr, DECAY: tl.constexpr, NORMS: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Eq. 4 for all tensors that have a gradient; with `NORMS`, partial sums for the norms of their new weights."""
    k, start, left = _chunk(layout, tensors, CHUNK)
    g_address = tl.load(addresses + tensors + k)
    if g_address != 0:
        w = _pointers(tl.load(addresses + k), start, DTYPE, ALIGNED, CHUNK)
        g = _pointers(g_address, start, DTYPE, ALIGNED, CHUNK)
        u = _pointers(tl.load(addresses + 2 * tensors + k), start, DTYPE, ALIGNED, CHUNK)
        gamma = tl.load(gammas + k)
        if left >= CHUNK:
            squares = _moved(w, g, u, left, gamma, momentum, decay, MOMENTUM, DECAY, True, CHUNK)
        else:
            squares = _moved(w, g, u, left, gamma, momentum, decay, MOMENTUM, DECAY, False, CHUNK)
        if NORMS:
            tl.store(partials + tl.program_id(0), squares)


@triton.jit
def _sum_of_squares(pointers, left, FULL: tl.constexpr, CHUNK: tl.constexpr):
    values = _load(pointers, left, FULL, CHUNK)
    return tl.sum(values * values, 0)


@triton.jit(do_not_specialize=["tensors"])
def sums_of_squares(
    addresses, layout, tensors, partials,
    GRADIENTS: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Partial sums for the norms of all weights; or of those gradients whose norm is the denominator."""
    k, start, left = _chunk(layout, tensors, CHUNK)
    address = tl.load(addresses + GRADIENTS * tensors + k)
    wanted = address != 0
    if GRADIENTS:
        wanted = wanted & (tl.load(addresses + 3 * tensors + k) == 0)
    if wanted:
        pointers = _pointers(address, start, DTYPE, ALIGNED, CHUNK)
        if left >= CHUNK:
            squares = _sum_of_squares(pointers, left, True, CHUNK)
        else:
            squares = _sum_of_squares(pointers, left, False, CHUNK)
        tl.store(partials + tl.program_id(0), squares)


@triton.jit
def _norm(partials, first, last, PARTIALS: tl.constexpr):
    sums = tl.zeros((PARTIALS,), tl.float32)
    for i in range(first, last, PARTIALS):
        at = i + tl.arange(0, PARTIALS)
        sums += tl.load(partials + at, mask=at < last, other=0.0)
    return tl.sqrt_rn(tl.sum(sums, 0))


@triton.jit(do_not_specialize=["tensors"])
def rates(
    addresses, layout, tensors, weight_partials, gradient_partials, scale, decay, gammas,
    DECAY: tl.constexpr, ON_DEVICE: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """`γ_k = scale · ‖w_k‖ / D_k` of tensor k, by the rules of `formulas.trust_ratio`; with `DECAY`, of `D_k + λ‖w_k‖`
    where `D_k` is not 0.

    `scale`, γ_scale · η, is a number, or the address of one `ON_DEVICE`.
    """
    k = tl.program_id(0)
    first = tl.load(layout + tensors + k)
    last = tl.load(layout + tensors + k + 1)
    norm = _norm(weight_partials, first, last, PARTIALS)
    address = tl.load(addresses + 3 * tensors + k)
    if address != 0:
        denominator = tl.load(address.to(tl.pointer_type(tl.float32)))
    else:
        denominator = _norm(gradient_partials, first, last, PARTIALS)
    if DECAY:
        denominator = tl.where(denominator == 0.0, 0.0, denominator + decay * norm)
    if ON_DEVICE:
        scale = tl.load(scale)
    zero = (norm == 0.0) | (denominator == 0.0)
    ratio = tl.where(zero, 1.0, tl.div_rn(norm, tl.where(zero, 1.0, denominator)))
    tl.store(gammas + k, ratio * scale)
