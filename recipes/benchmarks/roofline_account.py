"""FLOPs and bytes of a training step, operator by operator, on tensors without numbers: nothing is computed.

FLOPs are those of matrix products, by torch's own formulas (torch.utils.flop_counter); all else is bound by memory.
Bytes are an operator's inputs and outputs, each once, so they are a floor for operators that run one after the other,
as without torch.compile. FlopCounterMode itself counts no bytes, and time at the roofline is a sum over operators.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

FORWARD, BACKWARD, OTHER, OPTIMIZER = "products, forward", "products, backward", "all else", "optimizer step"
aten = torch.ops.aten
# Attention on a CPU, which is where operators are counted, has the formulas of that on a GPU.
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
NO_TRAFFIC = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view,
}  # fmt: skip
ONLY_WRITE = {aten.copy_, aten.fill_, aten.zero_}  # their first argument


class Account(TorchDispatchMode):
    """What the operators within it do: kind → (FLOPs, bytes) of each operator.

    Attributes:
        products: the kind of matrix products, FORWARD or BACKWARD.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self.products = FORWARD

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, operator = func(*args, **kwargs), func.overloadpacket
        if operator is aten.convolution_backward:
            self._convolution_backward(args, out)
        elif operator in FORMULAS:
            flops = FORMULAS[operator](*args, **kwargs, out_val=out)
            self.work[self.products].append((flops, _traffic(func, args, kwargs, out)))
        elif func.namespace == "aten" and not func.is_view and operator not in NO_TRAFFIC:
            self.work[OTHER].append((0, _traffic(func, args, kwargs, out)))
        return out

    def _convolution_backward(self, args: Any, out: Any) -> None:
        """Two products in one; torch's formula has `groups` times too much for the weight of a grouped one."""
        d, x, weight, _, _, _, _, transposed, _, _, wanted = args
        flops = 2 * x.shape[0] * math.prod((x if transposed else d).shape[2:]) * weight.numel()
        for other, result, is_wanted in ((weight, out[0], wanted[0]), (x, out[1], wanted[1])):
            if is_wanted:
                self.work[BACKWARD].append((flops, _bytes(d) + _bytes(other) + _bytes(result)))


def account(
    model: nn.Module, loss: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> dict[str, list[tuple[float, float]]]:
    """Of a step, SGD's with momentum included; the model is left as it is."""
    with FakeTensorMode() as mode:
        state = {n: mode.from_tensor(t) for n, t in (*model.named_parameters(), *model.named_buffers())}
        with Account() as counted:
            value = loss(lambda x: torch.func.functional_call(model, state, (x,)), *map(mode.from_tensor, (x, y)))
            counted.products = BACKWARD
            value.backward()
    weights = sum(p.numel() for p in model.parameters())
    # Reads a weight, its gradient and momentum, writes weight and momentum, of four bytes each.
    return {**counted.work, OPTIMIZER: [(0, 20 * weights)]}


def _traffic(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes of what an operator reads and writes."""
    reads, writes = ({id(t): t for t in tree_leaves(of) if isinstance(t, Tensor)} for of in (kwargs, out))
    for argument, value in zip(func._schema.arguments, args, strict=False):
        tensors = {id(t): t for t in tree_leaves(value) if isinstance(t, Tensor)}
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written:
            writes |= tensors
        if not (written and func.overloadpacket in ONLY_WRITE):
            reads |= tensors
    return sum(map(_bytes, [*reads.values(), *writes.values()]))


def _bytes(tensor: Tensor) -> int:
    """Of its own numbers: what is expanded has only one of each."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size() if tensor.numel() else 0
