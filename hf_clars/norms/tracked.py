"""A parameter that is measured, and the tensors that are known to be computed from such parameters alone."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .recorded_calls import Recipe
from .sample_axis.tags import PLACE

PARAMETER = "_hf_clars_parameter"  # tag on a parameter: its `TrackedParameter`
PARAMETERS = "_hf_clars_parameters"  # on a tensor that depends on parameters but not on samples: theirs
LOOKUP = "_hf_clars_lookup"  # on rows picked from a table by indices that are the same for all samples: the indices
CUT = "_hf_clars_cut"  # on such a tensor where no gradients are taken: its parameters'
RECIPE = "_hf_clars_recipe"  # on such a tensor under torch.compile: how it is computed

_NONE = nn.Parameter(torch.empty(0), requires_grad=False)


class TrackedParameter:
    """One parameter of the model: which it is, and the uses whose backward pass is still to come.

    Args:
        module, attribute: where it stands.
        name: in the model.
        index: its column in the sums.

    Attributes:
        excluded: part of its gradient cannot be measured, so none of what was measured counts.
        traced_uses: by compiled code, in the current forward pass.
    """

    def __init__(self, module: nn.Module, attribute: str, name: str, index: int) -> None:
        self.module = module
        self.attribute = attribute
        self.name = name
        self.index = index
        self.excluded = False
        self.traced_uses = 0
        self._known = weakref.ref(self.parameter)  # once it has left the module
        self._uses: list[weakref.ref[Any]] = []  # forward passes that nothing holds on to any more leave no use

    def __reduce__(self) -> Any:
        return type(None), ()  # parameters carry it as a tag; a pickled one has none

    @property
    def parameter(self) -> nn.Parameter:
        """Looked up each time: FSDP exchanges a module's parameters. One that left the module may live on elsewhere, as
        pruning and parametrizations have it; of one that does not, an empty one is left."""
        parameter = self.module._parameters.get(self.attribute)
        if parameter is not None and is_input(parameter):  # no other that functional_call() has put there
            return parameter
        parameter = self._known()
        return _NONE if parameter is None else parameter

    def tag(self, parameter: nn.Parameter) -> None:
        """Note on the parameter that this is it."""
        setattr(parameter, PARAMETER, self)
        if not torch.compiler.is_compiling():
            self._known = weakref.ref(parameter)

    def untag(self) -> None:
        vars(self.parameter).pop(PARAMETER, None)

    def used(self, use: object) -> None:
        """A forward pass uses the parameter."""
        if torch.compiler.is_compiling():
            self.traced_uses += 1
        else:
            self._uses = [*self._others(use), weakref.ref(use)]

    def in_use(self) -> bool:
        """Whether a forward pass whose backward is still to come uses the parameter."""
        return self.traced_uses > 0 or any(ref() is not None for ref in self._uses)

    def reached(self, use: object) -> bool:
        """The backward pass is at `use`: whether others are still to come."""
        self._uses = self._others(use)
        return bool(self._uses)

    def _others(self, use: object) -> list[weakref.ref[Any]]:
        return [ref for ref in self._uses if (other := ref()) is not None and other is not use]


@dataclass(frozen=True)
class TrackedTensor:
    """A parameter, or a tensor `u = g(parameters)` in which samples have no part.

    Args:
        parameters: the parameters.
        u: the tensor; None for a parameter itself, which FSDP may exchange.
        edge: where autograd stands behind `u` now: what works in place may put it elsewhere later on.
        lookup: indices and padding index, if `u` is rows of a table.
        recipe: how `u` is computed, if that is known.
    """

    parameters: tuple[TrackedParameter, ...]
    u: Tensor | None
    edge: GradientEdge | None = None
    lookup: tuple[Tensor, int] | None = None
    recipe: Recipe | None = None


def tracked_tensor(tensor: Any) -> TrackedTensor | None:
    """What is to be measured of a tensor's use; None for nothing."""
    if not is_tracked(tensor):
        return None
    parameter = getattr(tensor, PARAMETER, None)
    if parameter is not None:
        return TrackedTensor((parameter,), None)
    parameters, lookup, recipe = (
        getattr(tensor, PARAMETERS),
        getattr(tensor, LOOKUP, None),
        getattr(tensor, RECIPE, None),
    )
    if torch.compiler.is_compiling():
        return TrackedTensor(parameters, tensor, None, lookup, recipe)
    if lookup is not None and tensor._version:  # the rows were changed in place, maybe through a view
        lookup = None
    return TrackedTensor(parameters, tensor, get_gradient_edge(tensor), lookup, recipe)


def is_tracked(tensor: Any) -> bool:
    """Whether something is to be measured of a tensor's use."""
    return (
        isinstance(tensor, Tensor)
        and tensor.requires_grad
        and getattr(tensor, PLACE, None) is None
        and (hasattr(tensor, PARAMETER) or hasattr(tensor, PARAMETERS))
        and tensor.numel() > 0  # what has no elements has no gradient
    )


def is_input(tensor: Tensor) -> bool:
    """Whether a tensor was not computed from others, as far as gradients tell."""
    return isinstance(tensor, nn.Parameter) if torch.compiler.is_compiling() else tensor.is_leaf


def parameters_of(*tensors: TrackedTensor | None) -> list[TrackedParameter]:
    return [parameter for tensor in tensors if tensor is not None for parameter in tensor.parameters]


def parameters_behind(tensors: list[Tensor]) -> list[TrackedParameter]:
    """Those among the tensors, and those that these were computed from, without samples."""
    found: list[TrackedParameter] = []
    for tensor in tensors:
        if tensor.requires_grad and hasattr(tensor, PARAMETER):
            found.append(getattr(tensor, PARAMETER))
        found += (getattr(tensor, PARAMETERS, ()) if tensor.requires_grad else ()) + getattr(tensor, CUT, ())
    return list(dict.fromkeys(found))
