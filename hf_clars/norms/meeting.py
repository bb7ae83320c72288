"""Functions of parameters, and functions in which samples meet them: there the norms are read off.

Where the two meet, sample i uses its own copy of `u = g(w)`, a parameter or what is computed from some:

* in an operator of the table `OPERATORS`: its sampler measures;
* in a function that broadcasts: each sample is handed its own copy of `u`;
* in anything else: by a vector-Jacobian product for each sample, `samplers/function.py`.

Where it is not known which samples a tensor holds, the parameters it meets are named.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .copies import own_copies, shared_copies
from .measurement import Measurement
from .ops import CONCATENATING, COPYING, EQUAL_SIZES, OPERATORS, Operator, broadcast_but
from .plan import PICKED, decide
from .recorded_calls import is_random, is_viewing, is_writing
from .sample_axis.axis import Assumption, Lost, SampleAxis
from .sample_axis.call import Call, first_of, name_of
from .sample_axis.indices import goes_by_place
from .sample_axis.operands import broadcast_axis
from .sample_axis.table import RULES, place_after
from .sample_axis.tags import PLACE, axis_of, place_of, tagged, tensors_in
from .samplers.function import function_sampler
from .samplers.linear import EmbeddingSampler
from .standardised import is_standardised
from .tracked import LOOKUP, PARAMETERS, TrackedParameter, TrackedTensor, is_tracked, parameters_of, tracked_tensor
from .uses import Use
from .weight_recipes import remember

_COMPUTED = "what is used is computed from it, which takes a pass back for each sample"
_UNWATCHED = "it is used in a checkpointed function that is not a module"
_WRITTEN = "it is written into a tensor, of which others may be views, under torch.compile"


class Meeting:
    """Of samples and parameters, in the functions of a forward pass.

    Attributes:
        assumptions: of this pass, about copies of parameters.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.assumptions: list[Assumption] = []

    def leave(self) -> None:
        """The pass is over: name the parameters of assumptions that fail."""
        copies, self.assumptions = self.assumptions, []
        reason = "it was copied along a dimension as long as the batch, which turned out not to be the samples'"
        self.measurement.exclude_failed(copies, reason)

    def compute(self, func: Any, args: Any, kwargs: Any, of: list[TrackedTensor]) -> Any:
        """A function of parameters and constants."""
        if func in COPYING and self.measurement.batch:
            copies = self._copies(func, args, kwargs, self.measurement.batch)
            if copies is not None:
                return copies
        parameters: list[TrackedParameter] = []
        for tensor in of:
            parameters += [tracked for tracked in tensor.parameters if tracked not in parameters]
        if torch.compiler.is_compiling():
            out = func(*args, **kwargs)
        elif self.measurement.regions.is_unwatched():
            self.measurement.exclude(parameters, _UNWATCHED)
            return tagged(func(*args, **kwargs), PARAMETERS, ())
        else:
            with self.measurement.regions.kept():
                out = func(*args, **kwargs)
            if isinstance(out, Tensor) and not out.requires_grad:
                return out  # no parameter is behind it, even if gradients are taken of it from here on
        if torch.compiler.is_compiling():
            if is_writing(func):
                target = first_of(args, kwargs)
                if not is_tracked(target):  # which may be a view, of whose base nothing is known here
                    self.measurement.exclude(parameters, _WRITTEN)
                tagged(target, LOOKUP, None)
                tagged(target, PARAMETERS, tuple(parameters))
                return remember(func, args, kwargs, out)
            out = remember(func, args, kwargs, tagged(out, PARAMETERS, tuple(parameters)))
        elif is_writing(func):
            _note_written(first_of(args, kwargs), parameters)
            return out
        else:
            out = tagged(out, PARAMETERS, tuple(parameters))
        if func is torch.embedding and of[0].u is None:
            embedding = OPERATORS[func](*args, **kwargs)
            if embedding is not None and isinstance(embedding.sampler, EmbeddingSampler):
                tagged(out, LOOKUP, (embedding.x, embedding.sampler.padding_idx))
        elif func is Tensor.to and of[0].lookup is not None:
            tagged(out, LOOKUP, of[0].lookup)
        return out

    def _copies(self, func: Any, args: Any, kwargs: Any, batch: int) -> Tensor | None:
        """`u.expand(B, …)` and its like, where one dimension is as long as the batch: taken for one copy a sample,
        until it meets samples."""
        u = first_of(args, kwargs)
        out = func(*args, **kwargs)
        before = [1] * (out.ndim - u.ndim) + list(u.shape)
        dims = [d for d in range(out.ndim) if before[d] == 1 and out.shape[d] == batch]
        if len(dims) != 1 or not self.measurement.can_measure(tracked_tensor(u)):
            return None
        assumption = Assumption(likely=False)
        self.assumptions.append(assumption)
        axis = SampleAxis(dims[0], 1, batch, (assumption,) if batch > 1 else ())
        axis.carries(parameters_of(tracked_tensor(u)))
        copies = own_copies(self.measurement, u, axis, out.ndim, batch)
        times = [n // m if m else 1 for n, m in zip(out.shape, copies.shape, strict=True)]
        copies = copies.repeat(times) if max(times) > 1 else copies
        if not is_viewing(func):
            copies = copies.clone(memory_format=torch.contiguous_format)  # which may be changed in place
        return tagged(copies.contiguous() if out.is_contiguous() else copies, PLACE, axis)  # as views of it want

    def meet(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        take_apart = OPERATORS.get(func)
        operator = take_apart(*args, **kwargs) if take_apart is not None else None
        known = operator is not None and not (operator.broadcasts and is_tracked(operator.bias))
        if operator is not None and known and place_of(operator.x) is not None:
            return self._operator(operator)
        last = broadcast_but(func, tensors, args, kwargs)
        if last is not None:
            copies = self._own_copies_of_operands(func, args, kwargs, tensors, last)
            if copies is not None:
                return func(*copies[0], **copies[1])
        return self._function(func, args, kwargs, tensors)

    def _operator(self, operator: Operator) -> Tensor:
        plan = decide(self.measurement, operator)
        if plan is None:
            return operator.call(operator.x, operator.weight, operator.bias)
        for of in () if torch.compiler.is_compiling() else (plan.weight, plan.bias):
            if of is not None and of.u is not None and of.lookup is None and not is_standardised(of.u):
                self.measurement.note_expensive(of.parameters, _COMPUTED)
        x = operator.x
        return plan.run(self.measurement, axis_of(x), x, operator.weight, operator.bias, operator.kept)

    def _own_copies_of_operands(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], last: int
    ) -> tuple[Any, Any] | None:
        """The arguments with each tracked tensor replaced by one copy a sample; None where that does not make them."""
        if is_writing(func) and is_tracked(first_of(args, kwargs)):
            return None  # the copy would be changed
        ndim = max([t.ndim for t in tensors])
        axis = broadcast_axis(tensors, ndim, last)
        if axis is None or axis.pick is not None or axis.dim >= ndim - last:
            return None
        if func in CONCATENATING and _dim_of(args, kwargs, ndim) == axis.dim:
            return None  # its rows are beside those of the samples
        sizes = [t.shape[axis.dim - ndim + t.ndim] for t in tensors if axis_of(t) is not None]
        of = [t for t in tensors if is_tracked(t)]
        for u in of:
            # A number of another type or place than the tensors does not decide those of the result; its copies would.
            if u.ndim == 0 and True in [t.dtype != u.dtype or t.device != u.device for t in tensors]:
                return None
            dim = axis.dim - ndim + u.ndim
            own = dim >= 0 and u.shape[dim] == sizes[0]
            if not own and (func in EQUAL_SIZES or (dim >= 0 and u.shape[dim] != 1)):
                return None
        if not self.measurement.can_measure(*(tracked_tensor(t) for t in of)):
            return args, kwargs
        axis.carries(parameters_of(*(tracked_tensor(t) for t in of)))

        def replaced(value: Any) -> Any:
            if isinstance(value, Tensor):
                if not is_tracked(value):
                    return value
                dim = axis.dim - ndim + value.ndim
                if dim >= 0 and value.shape[dim] == sizes[0] and sizes[0] > 1:
                    return shared_copies(self.measurement, value, axis.at(dim))
                return own_copies(self.measurement, value, axis, ndim, sizes[0])
            if isinstance(value, (list, tuple)):
                return type(value)([replaced(each) for each in value])
            return value

        return replaced(args), {name: replaced(value) for name, value in kwargs.items()}

    def _function(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        out = func(*args, **kwargs)
        of: list[Tensor] = []
        for tensor in tensors:
            if is_tracked(tensor) and True not in [tensor is other for other in of]:
                of.append(tensor)
        parameters = parameters_of(*(tracked_tensor(t) for t in of))
        places = [place for place in map(place_of, tensors) if place is not None]
        axis, reason = self._axis_of_result(func, args, kwargs, tensors, out)
        lost = [place for place in places if type(place) is Lost]
        picked = [place for place in places if type(place) is SampleAxis and place.pick is not None]
        if axis is None or axis.pick is not None or lost or picked or True in [out is t for t in tensors]:
            self.measurement.exclude(parameters, PICKED if picked else lost[0].reason if lost else reason)
            return out
        traced = torch.compiler.is_compiling()
        if not traced and self.measurement.regions.is_unwatched():
            self.measurement.exclude(parameters, reason)
            return out
        if is_random(func, args, kwargs):
            self.measurement.exclude(parameters, f"{name_of(func)} draws random numbers")
            return out
        if not self.measurement.can_measure(*(tracked_tensor(u) for u in of)):
            return out
        call = Call(func, args, kwargs, tensors, out)
        if axis.batch > 1 and True in [goes_by_place(RULES.get(func), call, u, axis) for u in of]:
            self.measurement.exclude(parameters, f"which of it a sample meets in {name_of(func)} depends on the others")
            return out
        samplers = [function_sampler(func, args, kwargs, _all_tensors(args, kwargs), u, axis) for u in of]
        # Of compiled code the backward pass asks this, see `compiled.close()`.
        if not traced and False in [sampler.is_samplewise(saved, out) for sampler, saved in samplers]:
            self.measurement.exclude(parameters, f"{name_of(func)} does not treat it sample by sample")
            return out
        axis.carries(parameters)
        self.measurement.note_expensive(parameters, f"{name_of(func)} takes a pass back for each sample")
        for u, (sampler, saved) in zip(of, samplers, strict=True):
            use = Use(sampler, tracked_tensor(u), None, axis.batch, fused=False, axis=axis)
            out = self.measurement.hooked(
                out.clone(), use, saved
            )  # as functions keep their results for the backward pass
        return out

    def _axis_of_result(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any
    ) -> tuple[SampleAxis | None, str]:
        """Where samples stand in a function's result; and what to say where that does not help."""
        if func is torch.embedding:
            return None, "its embedding has sparse gradients, or scales them by frequency in the batch"
        reason = f"it is used by {name_of(func)}, for which there is no rule"
        if not isinstance(out, Tensor):
            return None, reason
        place = place_after(Call(func, args, kwargs, tensors, out), RULES.get(func))
        return (place if type(place) is SampleAxis else None), reason


def _note_written(target: Tensor, parameters: list[TrackedParameter]) -> None:
    """Parameters are behind a tensor now, into which a function wrote, and behind that of which it is a view."""
    tagged(target, LOOKUP, None)
    for each in (target, target._base):
        if each is not None and each.requires_grad:
            tagged(each, PARAMETERS, tuple(dict.fromkeys((*getattr(each, PARAMETERS, ()), *parameters))))


def _dim_of(args: Any, kwargs: Any, ndim: int) -> int:
    """Along which a function concatenates."""
    dim: int = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    return dim % ndim


def _all_tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return tensors_in(args) + tensors_in(kwargs.values())
