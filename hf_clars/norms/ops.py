"""The table from torch function to the sampler that measures its parameters; a new operator is one entry.

Modules do not matter here, only what their `forward` calls: a subclass with a `forward` of its own, a weight that is
computed from parameters, a layer that reads another's weight all end in one of these functions.

Products are not taken apart whose weight is complex (their gradients have the input's conjugate in them) or no matrix,
nor where the bias is not one number for each output: of these the samplers know nothing. Like any other function they
take a vector-Jacobian product for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .samplers.base import Sampler, Saved
from .samplers.conv import ConvSampler, TransposedConvSampler
from .samplers.linear import EmbeddingSampler, LinearSampler
from .samplers.norm_layers import (
    BatchNormSampler,
    GroupNormSampler,
    InstanceNormSampler,
    LayerNormSampler,
    RMSNormSampler,
)


@dataclass
class Operator:
    """A call of a torch function, taken apart.

    Args:
        sampler: how its parameters are measured.
        x: the input, whose rows belong to samples.
        weight, bias: None where absent.
        call: the function of `(x, weight, bias)`.
        kept: what the sampler wants beside x: the rest of its `xs`. It is given whole, unless the sampler says with
            `inputs_with_samples` that the first of these have samples where x has them.
        half: whether autocast runs it in half precision.
        broadcasts: whether the bias is any tensor that does, of which the sampler knows nothing.
    """

    sampler: Sampler
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    call: Callable[..., Tensor]
    kept: Saved = ()
    half: bool = False
    broadcasts: bool = False


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operator | None:
    if weight.ndim != 2 or weight.is_complex() or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return Operator(LinearSampler(tuple(weight.shape)), input, weight, bias, F.linear, half=True)


def addmm(input: Any, mat1: Any, mat2: Any, *more: Any, beta: float = 1, alpha: float = 1) -> Operator | None:
    """transformers' Conv1D. With numbers for β and α between its tensors, which torch takes, it is not taken apart."""
    if more or not isinstance(input, Tensor) or beta != 1 or alpha != 1 or mat2.is_complex():
        return None
    sampler = LinearSampler(tuple(mat2.shape), transposed=True)
    broadcasts = input.shape != mat2.shape[1:]
    return Operator(sampler, mat1, mat2, input, lambda x, w, b: torch.addmm(b, x, w), half=True, broadcasts=broadcasts)


def matmul(input: Tensor, other: Tensor) -> Operator | None:
    if other.ndim != 2 or other.is_complex():
        return None
    sampler = LinearSampler(tuple(other.shape), transposed=True)
    return Operator(sampler, input, other, None, lambda x, w, _: torch.matmul(x, w), half=True)


def convolution(spatial: int, function: Callable[..., Tensor]) -> Callable[..., Operator | None]:
    def operator(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Operator | None:
        if weight.is_complex():
            return None
        stride, dilation = _each(stride, spatial), _each(dilation, spatial)
        if isinstance(padding, str):
            spans = [r * (k - 1) for k, r in zip(weight.shape[2:], dilation, strict=True)]
            if padding == "same" and any(span % 2 for span in spans):
                # Padded one more behind than before: as a padding of its own, of which a convolution knows nothing.
                pads = [p for span in reversed(spans) for p in (span // 2, span - span // 2)]
                return operator(F.pad(input, pads), weight, bias, stride, 0, dilation, groups)
            padding = tuple(span // 2 for span in spans) if padding == "same" else 0
        padding = _each(padding, spatial)
        sampler = ConvSampler(tuple(weight.shape), stride, padding, dilation, groups).for_size(input.shape[-spatial:])
        return Operator(
            sampler,
            input,
            weight,
            bias,
            lambda x, w, b: function(x, w, b, stride, padding, dilation, groups),
            half=True,
        )

    return operator


def transposed_convolution(spatial: int, function: Callable[..., Tensor]) -> Callable[..., Operator | None]:
    def operator(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Operator | None:
        if weight.is_complex():
            return None
        stride, padding, output_padding, dilation = (
            _each(value, spatial) for value in (stride, padding, output_padding, dilation)
        )
        sampler = TransposedConvSampler(
            tuple(weight.shape), stride, padding, dilation, groups, output_padding=output_padding
        ).for_size(input.shape[-spatial:])
        return Operator(
            sampler, input, weight, bias,
            lambda x, w, b: function(x, w, b, stride, padding, output_padding, groups, dilation), half=True,
        )  # fmt: skip

    return operator


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):  # NumPy's numbers and tensors without dimensions are taken, too
        return (value if isinstance(value, int) else value.__index__(),) * spatial
    return tuple(value) if len(value) == spatial else tuple(value) * spatial


def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Operator | None:
    if scale_grad_by_freq or sparse:
        return None
    sampler = EmbeddingSampler(tuple(weight.shape), padding_idx)
    return Operator(sampler, indices, weight, None, lambda x, w, _: torch.embedding(w, x, padding_idx))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Operator:
    shape = tuple(normalized_shape)
    return Operator(
        LayerNormSampler(shape, eps), input, weight, bias,
        lambda x, w, b: torch.layer_norm(x, shape, w, b, eps, cudnn_enable),
    )  # fmt: skip


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Operator:
    shape = tuple(normalized_shape)
    return Operator(RMSNormSampler(shape, eps), input, weight, None, lambda x, w, _: torch.rms_norm(x, shape, w, eps))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Operator:
    sampler = GroupNormSampler((input.shape[1],), eps, num_groups)
    call = lambda x, w, b: torch.group_norm(x, num_groups, w, b, eps, cudnn_enabled)  # noqa: E731
    return Operator(sampler, input, weight, bias, call)


def norm_with_statistics(
    kind: type[BatchNormSampler | InstanceNormSampler], function: Callable[..., Tensor]
) -> Callable[..., Operator]:
    def operator(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
        use_input_stats: bool = False,  # instance norm's name for `training`
    ) -> Operator:
        of_input = training or use_input_stats
        statistics = () if of_input or running_mean is None or running_var is None else (running_mean, running_var)

        def call(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
            return function(x, w, b, running_mean, running_var, of_input, momentum, eps, cudnn_enabled)

        return Operator(kind((input.shape[1],), eps), input, weight, bias, call, statistics)

    return operator


def mm(input: Tensor, mat2: Tensor) -> Operator | None:
    return matmul(input, mat2)


OPERATORS: dict[Callable[..., Any], Callable[..., Operator | None]] = {
    F.linear: linear,
    torch.addmm: addmm,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    torch.mm: mm,
    Tensor.mm: mm,
    torch.conv1d: convolution(1, torch.conv1d),
    torch.conv2d: convolution(2, torch.conv2d),
    torch.conv3d: convolution(3, torch.conv3d),
    torch.conv_transpose1d: transposed_convolution(1, torch.conv_transpose1d),
    torch.conv_transpose2d: transposed_convolution(2, torch.conv_transpose2d),
    torch.conv_transpose3d: transposed_convolution(3, torch.conv_transpose3d),
    torch.embedding: embedding,
    torch.layer_norm: layer_norm,
    torch.rms_norm: rms_norm,
    torch.group_norm: group_norm,
    torch.batch_norm: norm_with_statistics(BatchNormSampler, torch.batch_norm),
    torch.instance_norm: norm_with_statistics(InstanceNormSampler, torch.instance_norm),
}

# Functions that broadcast: a parameter among their operands may as well be one copy for each sample.
BROADCASTING = {
    getattr(space, name)
    for space in (torch, Tensor)
    for name in (
        "add", "sub", "mul", "div", "true_divide", "pow", "where", "maximum", "minimum", "lerp", "addcmul", "addcdiv",
        "add_", "sub_", "mul_", "div_", "addcmul_", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__",
        "__isub__", "__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "rsub",
        "logaddexp",
    )
    if hasattr(space, name)
}  # fmt: skip

# Products of matrices that stand in the last two dimensions; those before them broadcast, but not for bmm.
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__}
PRODUCTS = MATMUL | {torch.bmm, Tensor.bmm}

CONCATENATING = {torch.cat, torch.concat, torch.concatenate}

# Functions of the dimensions before the last ones that take operands of equal sizes alone.
EQUAL_SIZES = CONCATENATING | {torch.bmm, Tensor.bmm}


def broadcast_but(func: Callable[..., Any], tensors: list[Tensor], args: Any, kwargs: Any) -> int | None:
    """How many of the last dimensions a function works along, that broadcasts in those before; None if it does not.

    Operands of fewer dimensions then get leading ones.
    """
    if func in CONCATENATING or func in BROADCASTING:
        return 0
    if func is F.scaled_dot_product_attention:
        # A mask may be each sample's own. Keys of more dimensions than the model's would choose another kernel.
        given = [*args[:3], *[kwargs[name] for name in ("query", "key", "value") if name in kwargs]]
        return 2 if len({(t.ndim, t.shape[0]) for t in given}) == 1 else None
    if func in PRODUCTS:
        return 2 if min([t.ndim for t in tensors]) > 1 and max([t.ndim for t in tensors]) > 2 else None
    return None


# Functions that copy a tensor along a dimension.
COPYING = {
    Tensor.expand,
    Tensor.expand_as,
    Tensor.repeat,
    Tensor.broadcast_to,
    torch.broadcast_to,
    Tensor.tile,
    torch.tile,
}
