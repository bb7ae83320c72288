"""FLOPs and bytes of a training step, operator by operator, from shapes alone: nothing is computed.

Bytes are those that an operator must read and write: its inputs and outputs, each once. So they are a floor for
operators that run one after the other, as without torch.compile; operators that are fused do with less. FLOPs are those
of matrix products (torch.utils.flop_counter's, a multiply-add is two); all else is bound by memory.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from roofline_stages import FORMULAS, INPUT, OPTIMIZER, OTHER, REST, WEIGHT, Stages, kind_of
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_clars.norms import kernels

Cell = tuple[str, str]  # stage and kind
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups

aten = torch.ops.aten
_NO_TRAFFIC = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view,
}  # fmt: skip
_ONLY_WRITE = {aten.copy_, aten.fill_, aten.zero_}  # their first argument


@dataclass
class Work:
    """Floating-point operations, and bytes read and written."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, peak: float, bandwidth: float) -> float:
        """At the roofline: `max(FLOPs / peak, bytes / bandwidth)`."""
        return max(self.flops / peak, self.bytes / bandwidth)


class Account(TorchDispatchMode):
    """Adds up what the operators within it do, by stage and kind.

    Attributes:
        plain: (stage, kind) → work of the step.
        norms: the same, of what exact norms add to it.
    """

    def __init__(self, stages: Stages, batch: int) -> None:
        super().__init__()
        self.stages, self.batch = stages, batch
        self.plain: defaultdict[Cell, list[Work]] = defaultdict(list)
        self.norms: defaultdict[Cell, list[Work]] = defaultdict(list)
        self._layers: list[tuple[Cell, Callable[[], Work]]] = []

    def add_norms(self) -> None:
        """To be called when all is counted, outside of whatever tensors without numbers were made by."""
        for cell, added in self._layers:
            self.norms[cell].append(added())
        self._layers.clear()

    def without_stages(self) -> None:
        """All that the model does becomes the stage "rest", as what a compiled model does is."""
        for of in (self.plain, self.norms):
            for stage, kind in [cell for cell in of if cell[0] not in (REST, OPTIMIZER)]:
                of[REST, kind] += of.pop((stage, kind))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if func.is_view or packet in _NO_TRAFFIC or func.namespace != "aten":
            return out
        # A private name, that of torch.autograd.graph; test_benchmarks.py fails if it goes.
        node = torch._C._current_autograd_node()
        module = self.stages.running if node is None else self.stages.module_of_node(node)
        stage = self.stages.of(module)
        if packet is aten.convolution_backward:
            self._convolution_backward(stage, args, out)
            return out
        result = tuple(out.shape) if packet is aten.mm else ()
        kind = kind_of([f"aten::{packet.__name__}"], node is not None, self.stages.weights(module), result)
        flops = FORMULAS[packet](*args, **kwargs, out_val=out) if packet in FORMULAS else 0
        self.plain[stage, kind].append(Work(flops, _traffic(func, args, kwargs, out)))
        if kind == WEIGHT:
            added = partial(self._added_to_product, *args) if result else partial(added_by_embedding_norms, args[0])
            self._layers.append(((stage, kind), added))
        return out

    def _added_to_product(self, left: Tensor, right: Tensor) -> Work:
        """Of a linear layer: `left [O, N · P]`, `right [N · P, I]`."""
        on_meta = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (right, left.mT))
        x, d = (t.unflatten(0, (self.batch, 1, -1)).permute(0, 3, 1, 2) for t in on_meta)
        return added_by_norms((left.shape[0], right.shape[1], 1, 1), x, d, self.batch)

    def _convolution_backward(self, stage: str, args: Sequence[Any], out: Any) -> None:
        """Two products in one. torch's formula has `groups` times too much for the weight gradient of a grouped one."""
        d, x, weight, _, stride, padding, dilation, transposed, _, groups, wanted = args
        positions = (x if transposed else d).shape[2:]
        flops = 2 * x.shape[0] * math.prod(positions) * weight.numel()
        if wanted[0]:
            self.plain[stage, INPUT].append(Work(flops, _bytes(d) + _bytes(weight) + _bytes(out[0])))
        if wanted[1]:
            self.plain[stage, WEIGHT].append(Work(flops, _bytes(d) + _bytes(x) + _bytes(out[1])))
            geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
            added = partial(added_by_norms, tuple(weight.shape), x, d, self.batch, geometry)
            self._layers.append(((stage, WEIGHT), added))


def account(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int, step: Callable[[nn.Module, Tensor, Tensor], Any]
) -> tuple[Stages, Account]:
    """The account of one step at `batch_size`.

    Args:
        model, x, y: on the CPU, a batch of any size; they are left as they are.
        step: forward and backward of a batch.
    """
    model = copy.deepcopy(model)
    with FakeTensorMode() as mode:  # tensors that have everything but numbers
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, mode.from_tensor(parameter))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, mode.from_tensor(buffer))
        x, y = (mode.from_tensor(t)[:1].expand(batch_size, *t.shape[1:]) for t in (x, y))
        channels_last = x.ndim == 4 and x[:1].is_contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        stages = Stages(model)
        with stages.watching(), Account(stages, batch_size) as counted:
            step(model, x, y)
    counted.add_norms()
    weights = sum(p.numel() for p in model.parameters())
    four = 4 * weights  # bytes
    counted.plain[OPTIMIZER, OTHER] = [Work(0, 5 * four)]  # reads w, its gradient and momentum; writes w and momentum
    counted.norms[OPTIMIZER, OTHER] = [Work(0, four)]  # reads w once more, for ‖w‖
    return stages, counted


def added_by_norms(
    shape: tuple[int, ...], x: Tensor, d: Tensor, samples: int, geometry: Geometry | None = None
) -> Work:
    """What the norms of a layer add to the work of its weight gradient, see `hf_clars/norms/kernels/`.

    Kernels that give the weight gradient, too, read and multiply what torch's do; what they write down in between is
    written and read once more. The Gram form comes on top. Where there is no kernel, every sample's gradient is
    written, and read for its norm and for the sum.

    Args:
        shape: of the weight, `[O, C / groups, K, L]`.
        x, d: input `[N, C, H, W]` and output derivative `[N, O, H', W']`; their numbers are not looked at.
        samples: that the N images belong to.
        geometry: of the convolution; None for a linear layer.
    """
    stride, padding, dilation, groups = geometry or ((1, 1), (0, 0), (1, 1), 1)
    positions, folds = math.prod(d.shape[2:]), x.shape[0] // samples
    kernel = kernels.by_shape(shape, positions, groups, folds)
    if kernel in ("tiles", "depthwise"):
        on_meta = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (x, d))
        convolution = kernels.Convolution(*on_meta, shape, stride, padding, dilation, groups, kernel)
        return Work(0, _scratch(convolution, samples))
    if kernel == "gram" or positions == 1:
        squared = max(16, 1 << (positions - 1).bit_length()) ** 2 if kernel else 1
        flops = 2 * x.shape[0] * squared * groups * (math.prod(shape[1:]) + shape[0] // groups)
        return Work(flops, _bytes(x) + _bytes(d) + 4 * samples)
    return Work(0, 3 * 4 * samples * math.prod(shape))


def added_by_embedding_norms(d: Tensor) -> Work:
    """The same of an embedding, whose derivative `[..., N]` is sorted by token, added up and squared, in float32."""
    return Work(0, _bytes(d) + 5 * 4 * d.numel())


class _Moved(TorchDispatchMode):
    """Adds up the bytes that operators move."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in _NO_TRAFFIC:
            self.bytes += _traffic(func, args, kwargs or {}, out)
        return out


def _scratch(convolution: kernels.Convolution, samples: int) -> int:
    """Bytes that a kernel, here its host code alone, moves beside its operands and its results.

    Copies of operands, that come first, and what one launch leaves to the next: it is an argument of both.
    """
    from hf_clars.norms.kernels.launch import Launch

    launches: list[Sequence[Any]] = []
    not_launched = mock.Mock(side_effect=lambda device, *tensors: launches.append(tensors))
    with mock.patch.object(Launch, "__call__", not_launched), _Moved() as moved:
        results = kernels.squares_and_sum(convolution, samples, torch.float32)
    given = sum(_bytes(tensor) for number, tensors in enumerate(launches) for tensor in tensors[0 if number else 2 :])
    return moved.bytes + given - sum(map(_bytes, results))


def _traffic(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes of what an operator reads and writes."""
    reads: dict[int, Tensor] = {}
    writes = {id(t): t for t in tree_leaves(out) if isinstance(t, Tensor)}
    for argument, value in zip(func._schema.arguments, args, strict=False):
        tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written:
            writes |= {id(t): t for t in tensors}
        if not (written and func.overloadpacket in _ONLY_WRITE):
            reads |= {id(t): t for t in tensors}
    reads |= {id(t): t for t in tree_leaves(kwargs) if isinstance(t, Tensor)}
    return sum(map(_bytes, reads.values())) + sum(map(_bytes, writes.values()))


def _bytes(tensor: Tensor) -> int:
    """Of its own numbers: what is expanded has only one of each."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size() if tensor.numel() else 0
