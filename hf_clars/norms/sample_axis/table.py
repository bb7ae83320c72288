"""The table from torch function to where samples stand in its result. A new function is one entry of `RULES`.

A rule sees the call and its result, and answers from shapes and arguments alone. `None` stands for "not known": what
comes after is named, never guessed. A function that is not in the table has no rule.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .axis import Assumption, Lost, Place, SampleAxis, fits
from .call import SPACES, Call, Rule, functions_named, name_of
from .index_tensors import sorting
from .indices import (
    adding_rows,
    copying,
    filling,
    gathering,
    getting,
    putting,
    scattering,
    selecting_rows,
    setting,
)
from .operands import agreed, aligned, choosing
from .parts import concatenating, hstacking, narrowing, selecting, splitting, stacking
from .products import (
    added_product,
    attending,
    cell,
    convolving,
    distances,
    einstein,
    embedding_rows,
    grouped_product,
    linear_map,
    matrices,
    product,
    recurrent,
    reversed_product,
    searched,
    similarity,
)
from .shapes import (
    along,
    appending,
    diagonal,
    expanding,
    first,
    flipping,
    framing,
    interleaving,
    joining,
    keeping,
    leading,
    padding,
    permuting,
    reducing,
    repeating,
    reshaping,
    unfolding,
)
from .tags import axis_of, place_of


def place_after(call: Call, rule: Rule | None) -> Place:
    """Where samples stand in the result of a function that was given some."""
    lost: Lost | None = None
    count = -1
    known = False
    assumed: list[Assumption] = []
    for tensor in call.tensors:
        place = place_of(tensor)
        if place is None:
            continue
        known = known or len(place.assumed) == 0
        assumed += [each for each in place.assumed if each not in assumed]
        if type(place) is SampleAxis:
            count = place.batch if place.pick is None else place.pick.source.batch
        elif type(place) is Lost and lost is None:
            lost = place
    if count == 1 and call.out.ndim:  # whatever there is belongs to the only sample
        return SampleAxis(0, call.out.shape[0], 1)
    if lost is not None:
        _refute_shared(call)
    axis = None if rule is None else rule(call)
    if axis is not None and fits(axis, call.out.shape):
        return axis
    _refute_assumed(call)
    reason = f"which samples its input holds is not known after {name_of(call.func)}"
    return Lost(reason if lost is None else lost.reason, () if known else tuple(assumed))


def _refute_shared(call: Call) -> None:
    """All samples meet what was made of all rows of another argument: those are no samples."""
    places = [place for place in map(place_of, call.tensors) if place is not None]
    if True in [type(place) is SampleAxis and len(place.assumed) == 0 for place in places]:
        for place in places:
            for assumption in place.assumed if type(place) is Lost else ():
                assumption.refuted = True


def _refute_assumed(call: Call) -> None:
    """Tensors met, and not as samples of one batch do: what was only assumed of some does not hold."""
    axes = [axis for axis in map(axis_of, call.tensors) if axis is not None]
    if call.func in _LOSSES and _are_compared(call) and agreed(axes) is not None:
        return
    if False in [bool(axis.assumed) for axis in axes]:
        for axis in axes:
            axis.refute()


# Sample i of one tensor against sample i of the other, though the result is a mean over all of them.
_BY_CLASS = ("cross_entropy_loss", "nll_loss", "nll_loss_nd")
_ELEMENTWISE = (
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "kl_div",
)  # fmt: skip
_LOSSES_BY_CLASS = {func for name in _BY_CLASS for func in functions_named(name)}
_LOSSES = _LOSSES_BY_CLASS | {func for name in _ELEMENTWISE for func in functions_named(name)}


def _are_compared(call: Call) -> bool:
    """Whether a loss counts the dimensions of both tensors from the first: with targets that broadcast it does not."""
    return call.func in _LOSSES_BY_CLASS or len({t.ndim for t in call.tensors if axis_of(t) is not None}) == 1


_BY_NAME: list[tuple[str, Rule]] = [
    ("""
     floor_divide fmod rsub xlog1py erfcx expit log_ndtr ndtri entr logsigmoid tanhshrink softsign multiply subtract
     divide negative absolute arcsin arccos arctan arctan2 arcsinh arccosh arctanh greater greater_equal less less_equal
     not_equal logical_and fix bernoulli masked_fill clamp isclose broadcast_tensors
     """, aligned),
    ("""
     softmax log_softmax softmin gumbel_softmax cumsum cumprod logcumsumexp cummax cummin normalize dropout dropout1d
     dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout layer_norm rms_norm
     group_norm instance_norm batch_norm local_response_norm renorm clone contiguous detach to type type_as float half
     bfloat16 double int long bool cpu cuda short char byte requires_grad_ data alias real imag zero fill
     tril triu nan_to_num zeros_like ones_like full_like empty_like rand_like randn_like randint_like
     hardtanh hardswish prelu celu mish isin relu6 pin_memory
     """, keeping),
    ("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel", reshaping),
    ("permute transpose swapaxes swapdims movedim moveaxis t T H mT mH adjoint numpy_T matrix_H", permuting),
    ("expand expand_as broadcast_to", expanding),
    ("repeat tile", repeating),
    ("repeat_interleave", interleaving),
    ("""
     sum mean amax amin max min prod var std var_mean std_mean logsumexp argmax argmin all any nansum nanmean median
     nanmedian mode count_nonzero
     """, reducing(1)),
    ("norm vector_norm kthvalue", reducing(2)),
    ("glu", along(1, -1)),
    ("sort argsort", sorting),
    ("fft ifft rfft irfft hfft ihfft", along(2, -1)),
    ("fft2 ifft2 rfft2 irfft2 hfft2 ihfft2", along(2, (-2, -1))),
    ("fftn ifftn rfftn irfftn hfftn ihfftn", along(2)),
    ("fftshift ifftshift", along(1)),
    ("stft istft", framing),
    ("topk diff", along(2, -1)),
    ("flip", flipping),
    ("roll take_along_dim", along(2)),
    ("pad", padding),
    *[
        (f"avg_pool{n}d max_pool{n}d adaptive_avg_pool{n}d lp_pool{n}d adaptive_max_pool{n}d max_pool{n}d_with_indices",
         leading(n)) for n in (1, 2, 3)
    ],
    ("""
     interpolate upsample upsample_bilinear upsample_nearest grid_sample fold pixel_shuffle pixel_unshuffle
     channel_shuffle affine_grid im2col
     """, first),
    ("one_hot diag_embed view_as_real", appending),
    ("view_as_complex", joining),
    ("diagonal", diagonal),
    ("select unbind", selecting),
    ("narrow", narrowing),
    ("split chunk tensor_split split_with_sizes unsafe_chunk unsafe_split", splitting),
    ("cat concat concatenate", concatenating),
    ("stack", stacking),
    ("hstack", hstacking),
    ("matmul mm bmm __matmul__ mv", product),
    ("__rmatmul__", reversed_product),
    ("addmm baddbmm addmv", added_product),
    ("linear", linear_map),
    ("grouped_mm _grouped_mm", grouped_product),
    ("scaled_dot_product_attention", attending),
    ("""
     solve solve_triangular triangular_solve inv inverse pinv cholesky cholesky_inverse cholesky_solve qr svd svdvals
     eig eigh eigvals eigvalsh det logdet slogdet matrix_exp matrix_power lu_factor lstsq
     """, matrices),
    ("einsum", einstein),
    *[(f"conv{n}d conv_transpose{n}d", convolving(n)) for n in (1, 2, 3)],
    ("lstm gru rnn_tanh rnn_relu", recurrent),
    ("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", cell),
    ("embedding", embedding_rows),
    ("cdist", distances),
    ("cosine_similarity", similarity),
    ("where", choosing),
    ("bucketize searchsorted", searched),
    ("__getitem__", getting),
    ("__setitem__", setting),
    ("index_put", putting),
    ("index_select", selecting_rows),
    ("gather", gathering),
    ("index_add index_copy", adding_rows),
    ("scatter scatter_add scatter_reduce", scattering),
    ("masked_scatter", filling),
    ("copy", copying),
]  # fmt: skip

_OF_PYTHON = """
    add radd iadd sub rsub isub mul rmul imul truediv rtruediv itruediv floordiv rfloordiv ifloordiv mod rmod imod
    pow rpow ipow neg pos abs invert and rand iand or ror ior xor rxor ixor eq ne lt le gt ge
"""


def _pointwise() -> dict[Any, Rule]:
    """What torch itself tags as pointwise, and Python's operators."""
    table: dict[Any, Rule] = {}
    for name in {name for space in SPACES[:5] for name in dir(space) if not name.startswith("__")}:
        packet: Any = getattr(torch.ops.aten, name, None)
        overloads = packet.overloads() if hasattr(packet, "overloads") else ()
        if any(torch.Tag.pointwise in getattr(packet, each).tags for each in overloads):
            table.update(dict.fromkeys(functions_named(name), aligned))
    methods = [getattr(Tensor, f"__{name}__", None) for name in _OF_PYTHON.split()]
    return table | dict.fromkeys([method for method in methods if method is not None], aligned)


def _table() -> dict[Any, Rule]:
    table = _pointwise()
    for names, rule in _BY_NAME:
        for name in names.split():
            table.update(dict.fromkeys(functions_named(name), rule))
    # Of the same name, but other functions: im2col; and the one that takes the ids first and calls torch.embedding.
    table |= {F.unfold: first, Tensor.unfold: unfolding}
    table.pop(F.embedding, None)
    return table


def _all(names: str) -> set[Any]:
    return {function for name in names.split() for function in functions_named(name)}


RULES: dict[Any, Rule] = _table()

# Rules of functions whose results, of the shape that all operands with samples have, have them in the same place.
LEAVING: set[Rule | None] = {aligned, keeping}

# Functions to which operands other than the first tell a type or a shape alone.
OF_FIRST = _all("to type_as view_as reshape_as expand_as")

# Functions whose result has nothing of their operand's values.
FRESH = _all("new_zeros new_ones new_empty new_full new_tensor new_empty_strided")
