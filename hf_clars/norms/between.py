"""Where samples stand in what was computed between two watched calls, read off the graph that autograd keeps.

A training step of one's own calls parts of a model one after the other, `z = self.enc(x)`, then
`self.dec(z.transpose(1, 2))`, and nobody watches what it does in between. The graph says what was done and in which
shapes, and its nodes stand for the functions of which `sample_axis/` has rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backward import Hook
from .recorder import Recorder
from .sample_axis import operands, parts, shapes
from .sample_axis.axis import Lost, Place, SampleAxis, sliced
from .sample_axis.call import Call, name_of
from .sample_axis.table import RULES, place_after
from .sample_axis.tags import PLACE, axis_of, place_of
from .tracked import PARAMETER

_HOOK: Any = Hook._backward_cls
_RESULTS = "_hf_clars_results"  # in a node's metadata: whose result it made, and where samples stand in that
_OF_PARAMETERS = Lost("its input was computed between two calls that are watched, from a result without samples")
_UNSEEN = Lost("its input was computed between two calls that are watched, from a tensor inside of one")
_COMPILED = Lost("its input was computed from the result of a call that is compiled alone")


def remember_results(tensors: list[Tensor], recorder: Recorder) -> None:
    """Note in the graph where samples stand in the results of an outermost call."""
    for tensor in tensors:
        node: Any = tensor.grad_fn
        if node is not None:
            place = place_of(tensor)
            known = node.metadata.setdefault(_RESULTS, {})
            known[tensor.output_nr] = (recorder, _OF_PARAMETERS if place is None else place)


def place_by_graph(tensor: Tensor, recorder: Recorder) -> Place | None:
    """Where samples stand in a tensor; None if no result of a call that is watched for `recorder` has a part in it."""
    found: dict[Any, list[Place | None]] = {}  # node → of each of its results
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting[-1]
        before = [] if node in found or _known(node, recorder) else [n for n, _ in node.next_functions if n is not None]
        before = [n for n in before if n not in found]
        if before:
            waiting += before
        else:
            waiting.pop()
            if node not in found:
                found[node] = _known(node, recorder) or _after(node, found)
    return found[tensor.grad_fn][tensor.output_nr]


def _known(node: Any, recorder: Recorder) -> list[Place | None]:
    """Where samples stand in each of a node's results, if that was noted; an empty list if not."""
    sizes = [each.shape for each in node._input_metadata]  # of the backward pass; results of the forward pass
    noted = {n: place for n, (whose, place) in node.metadata.get(_RESULTS, {}).items() if whose is recorder}
    if noted:
        return [noted.get(n, _UNSEEN) for n in range(len(sizes))]
    if isinstance(node, _HOOK) and node.recorder is recorder:
        use, rows = node.use, sizes[0][0] if sizes[0] else 0
        if use.axis is not None or use.unbatched or use.batch < 1 or rows % use.batch:
            return [_UNSEEN]
        return [SampleAxis(0, rows // use.batch, use.batch)]
    if node.name() == "CompiledFunctionBackward":
        leaves = [getattr(n, "variable", None) for n, _ in node.next_functions]
        if any(getattr(leaf, PARAMETER, None) in recorder.parameters for leaf in leaves):
            return [_COMPILED for _ in sizes]
    return []


def _after(node: Any, found: dict[Any, list[Place | None]]) -> list[Place | None]:
    """Where samples stand in each result of a function, of whose operands that is found."""
    sizes = [each.shape for each in node._input_metadata]
    places = [None if n is None else found[n][index] for n, index in node.next_functions]
    if places == [None] * len(places):
        return [None] * max(1, len(sizes))
    outs = [_Shaped(size, None) for size in sizes]
    given = [
        _Shaped(sizes[0] if n is None or place is None else n._input_metadata[index].shape, place)
        for (n, index), place in zip(node.next_functions, places, strict=True)
    ]
    return [_place(node, given, outs, number) for number in range(len(outs))]


class _Shaped:
    """What rules see of a tensor: its shape and its place; of one without samples the shape does not matter."""

    def __init__(self, shape: Sequence[int], place: Place | None) -> None:
        self.shape, self.ndim = torch.Size(shape), len(shape)
        setattr(self, PLACE, place)

    def numel(self) -> int:
        return self.shape.numel()


def _place(node: Any, given: list[Any], outs: list[Any], number: int) -> Place:
    """By the rule of the function that a node stands for."""
    func = _FUNCTIONS.get(_name(node))
    if func is None:
        return Lost(f"its input was computed by {node.name()} between two calls that are watched")
    saved = {name[7:]: _signed(getattr(node, name)) for name in dir(node) if name in _ARGUMENTS}
    args = (given,) if func in (torch.cat, torch.stack) else (given[0],)
    rule = _slicing if func is torch.slice_copy else RULES[func]
    return place_after(Call(func, args, saved, given, outs[number], number, outs), rule)


def _slicing(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    if axis is None or call.kwargs["dim"] % call.x.ndim != axis.dim:
        return axis
    size = call.x.shape[axis.dim]
    start, stop, _ = slice(call.kwargs["start"], call.kwargs["end"]).indices(size)
    return sliced(axis, size, start, stop, call.kwargs["step"])


_ARGUMENTS = {  # as nodes call what rules ask for
    f"_saved_{name}"
    for name in ("dim", "dims", "dim0", "dim1", "dim2", "dimension", "start", "end", "step", "pad", "repeats")
}


def _signed(value: Any) -> Any:
    """What nodes keep as unsigned, with -1 as the largest."""
    if isinstance(value, tuple):
        return tuple(_signed(each) for each in value)
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def _name(node: Any) -> str:
    """`"transpose"` of TransposeBackward0; functions with a derivative of their own have no number."""
    match = re.fullmatch(r"(?:Unsafe|Native)?(\w+?)Backward\d+", node.name())
    return "" if match is None else match[1].lower()


def _by_name_of_node() -> dict[str, Any]:
    """Functions whose rule reads shapes, and arguments that nodes keep."""
    rules = {shapes.__name__, parts.__name__, operands.__name__}
    functions = {
        name_of(func).rstrip("_").replace("_", "").lower(): func
        for func, rule in RULES.items()
        if rule.__module__ in rules and not name_of(func).startswith("__")
    }
    del functions["unfold"]  # two functions go by this name
    return functions | {
        "cat": torch.cat,
        "stack": torch.stack,
        "tocopy": Tensor.to,
        "slice": torch.slice_copy,
        "reshapealias": torch.reshape,
        "maxpool2dwithindices": torch.max_pool2d,
        "constantpadnd": torch.nn.functional.pad,
        "splitwithsizes": torch.split_with_sizes,
    }


_FUNCTIONS = _by_name_of_node()
