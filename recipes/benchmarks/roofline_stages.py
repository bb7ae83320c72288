"""Which part of a model an operator belongs to, forward and backward, and what kind of work it is.

Every operator that has a derivative takes a number, counted up through the forward pass, and its derivative's node has
the same one. So it is enough to know the number at which each module begins: `Stages.watching()` notes it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

FORWARD, INPUT, WEIGHT, OTHER = "forward", "input gradient", "weight gradient", "other"
KINDS = (FORWARD, INPUT, WEIGHT, OTHER)
REST, OPTIMIZER = "rest", "optimizer step"  # stages that are no part of the model

aten = torch.ops.aten
# Attention on a CPU, which is where operators are counted, has the formulas of that on a GPU.
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
PRODUCTS = {str(packet).replace(".", "::") for packet in FORMULAS if str(packet).startswith("aten.")}
_CONVOLUTIONS = {"aten::convolution_backward"}
_EMBEDDINGS = {"aten::embedding_dense_backward"}


class Stages:
    """The parts of a model in the order of its children: containers by their names, and what is before and behind them.

    Where there is only one container, its own children stand in its place. Children without children join the
    container before them; those before the first are the "stem", those behind the last the "head". What no child
    computes, the loss among it, is the "rest".
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._of = _stages(model)
        self.names = [*dict.fromkeys(self._of.values()), REST, OPTIMIZER]
        self._modules = dict(model.named_modules())
        self._parameters = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
        self._stack = [""]
        self._starts: list[int] = []
        self._names: list[str] = []

    def of(self, module: str) -> str:
        """The stage of a module by its qualified name."""
        while module:
            if module in self._of:
                return self._of[module]
            module = module.rpartition(".")[0]
        return REST

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note where modules begin and end, in forward passes within."""
        self._stack, self._starts, self._names = [""], [], []
        handles = []
        for name, module in self._modules.items():
            # The number that the next operator will get. A private name, torch.fx's way, too;
            # test_benchmarks.py fails if it goes.
            def enter(*_: object, name: str = name) -> None:
                self._stack.append(name)
                self._note()

            def leave(*_: object) -> None:
                self._stack.pop()
                self._note()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        self._note()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self) -> None:
        self._starts.append(torch.autograd._get_sequence_nr())
        self._names.append(self._stack[-1])

    @property
    def running(self) -> str:
        """The module whose forward is running."""
        return self._stack[-1]

    def module_at(self, number: int) -> str:
        """The module that was running when an operator took this number; "" for none."""
        before = bisect.bisect_right(self._starts, number) - 1
        return self._names[before] if before >= 0 else ""

    def module_of_node(self, node: torch.autograd.graph.Node) -> str:
        """The module that a node of the backward pass is the derivative of."""
        if hasattr(node, "variable"):  # where a gradient is accumulated
            return self._parameters.get(id(node.variable), "")
        return self.module_at(node._sequence_nr())

    def weights(self, module: str) -> list[tuple[int, ...]]:
        """Shapes of its own weights; where no child is at work, those of all."""
        return [tuple(p.shape) for p in self._modules[module].parameters(recurse=not module) if p.ndim >= 2]


def kind_of(
    operators: Sequence[str], backward: bool, weights: Sequence[tuple[int, ...]], result: tuple[int, ...] = ()
) -> str:
    """What kind of work an operator is.

    Args:
        operators: its name (`aten::mm`) and those of the operators that called it.
        backward: whether it is part of the backward pass.
        weights: shapes of the weights of the module it belongs to.
        result: of a matrix product, its shape; a weight gradient has that of a weight, or of its transpose.
    """
    if _EMBEDDINGS & {*operators}:
        return WEIGHT
    if not PRODUCTS & {*operators}:
        return OTHER
    if not backward:
        return FORWARD
    return WEIGHT if result and any(sorted(result) == sorted(shape) for shape in weights) else INPUT


def _stages(model: nn.Module) -> dict[str, str]:
    """Qualified name of a module → stage; of modules within it, too."""
    parts = list(model.named_children())
    while len(containers := [part for part in parts if _is_container(part[1])]) == 1:
        name, module = containers[0]
        inside = [(f"{name}.{child_name}", child) for child_name, child in module.named_children()]
        if not any(_is_container(child) for _, child in inside):
            break
        at = parts.index(containers[0])
        parts[at : at + 1] = inside
    names = [name for name, _ in containers]
    stages, stage = {}, "stem"
    for name, _ in parts:
        if name in names:
            stage = _label(name)
        elif names and stage == _label(names[-1]):
            stage = "head"
        stages[name] = stage
    return stages


def _is_container(module: nn.Module) -> bool:
    return any(True for child in module.children() for _ in child.parameters())


def _label(name: str) -> str:
    *outer, own = name.split(".")
    return f"{outer[-1]}.{own}" if own.isdigit() and outer else own
