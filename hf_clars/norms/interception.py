"""Where a forward pass is watched: every torch function it calls that uses a measured parameter gets a tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .copies import own_copies, shared_copies
from .fallback import function_rule
from .marks import (
    CUT,
    ENTRIES,
    INDEX,
    LOOKUP,
    PLACE,
    axis_of,
    is_input,
    is_source,
    marked,
    place_of,
    source_of,
    tensors_in,
)
from .measured import PICKED, decide, entries_of, measurable, tap
from .opened import opened, recognised
from .operators import COPYING, EQUAL_SIZES, OPERATORS, Operator, broadcast_but
from .recipes import is_random, is_writing, note_change, remember
from .recomputation import Regions, pages_of
from .sample_axis.axis import Assumption, Lost, Place, SampleAxis, seen_through
from .sample_axis.call import Call, Rule, name_of
from .sample_axis.indices import index_after
from .sample_axis.operands import broadcast_axis
from .sample_axis.table import FRESH, LEAVING, OF_FIRST, RULES, place_after
from .tap import Use
from .watched_forward import is_unwatched_in_reentrant

if TYPE_CHECKING:
    from .marks import Source
    from .per_sample import PerSampleNorms


class Interception(TorchFunctionMode):
    """Is asked about each torch function call of a forward pass.

    It keeps track of what depends on samples, and of where they stand in it (`sample_axis/`); and of what depends on
    parameters alone (`u = g(w)`: a standardised weight, a table of relative positions). Where the two meet, sample i
    uses its own copy of `u`, and there the norms are read off:

    * in an operator of the table `OPERATORS`: by its rule;
    * in a function that broadcasts: each sample is handed its own copy of `u`;
    * in anything else: by a vector-Jacobian product for each sample, `fallback.py`.

    Where it is not known which samples a tensor holds, the parameters it meets are named.
    """

    def __init__(self, norms: PerSampleNorms) -> None:
        super().__init__()
        self.norms = norms
        self.active = False
        self.trains = False  # the outermost forward takes gradients, or will in reentrant checkpointing's second run
        self.passing_by = False
        self.regions = Regions()
        self.assumptions: list[Assumption] = []  # of this pass, about copies of parameters

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            func = recognised(func)
        if func in OF_FIRST:
            tensors = [args[0]]
        else:
            tensors = tensors_in(args)
            if kwargs:
                tensors += tensors_in(kwargs.values())
        samples = sources = indices = False
        alike = None  # what all tensors with samples are like, if they are
        for tensor in tensors:
            place = place_of(tensor)
            if place is not None:
                if not samples:
                    alike = tensor, place
                elif alike is not None and (place is not alike[1] or tensor.shape != alike[0].shape):
                    alike = None
                samples = True
                indices = indices or hasattr(tensor, INDEX)
            elif is_source(tensor):
                sources = True
            elif hasattr(tensor, INDEX):
                indices = True
            elif tensor.requires_grad and not is_input(tensor):
                marked(tensor, PLACE, Lost("its input comes from a function that is not watched"))
                samples, alike = True, None
        rule = RULES.get(func) if samples else None
        opens = opened(func) if samples and rule is None else None
        if opens is None and sources and torch.is_grad_enabled():
            opens = opened(func)
        if opens is not None:
            return self._inside(opens, args, kwargs)
        if not torch.is_grad_enabled():
            cut = self._cut(tensors) if self.trains else ()
            out = func(*args, **kwargs)
            if cut and not samples:
                marked(out, CUT, cut)
            if sources and torch.compiler.is_compiling() and is_writing(func):
                note_change(args[0])
        elif sources:
            if not samples:
                return self._compute(func, args, kwargs, [s for s in map(source_of, tensors) if s is not None])
            out = self._meet(func, args, kwargs, tensors)
        else:
            out = func(*args, **kwargs)
        if samples:
            in_place = len(args) > 0 and out is args[0]
            moved = in_place or alike is None or not isinstance(out, Tensor) or out.shape != alike[0].shape
            if not moved and not indices and alike is not None and rule in LEAVING:
                setattr(out, PLACE, alike[1])  # nothing moved
                return out
            out = self._placed(func, args, kwargs, tensors, out, rule)
        if indices or (samples and func in _SORTS) or func is torch.arange:
            _note_index(func, args, kwargs, tensors, out)
        return out

    def _placed(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any, rule: Rule | None) -> Any:
        """The result, marked with where samples stand in it."""
        if func in FRESH:
            return out
        if func is Tensor.__setitem__:
            self._written(func, args[0], place_after(Call(func, args, kwargs, tensors, args[0]), rule), tensors)
            return out
        if isinstance(out, Tensor):
            place = place_after(Call(func, args, kwargs, tensors, out), rule)
            if True in [out is t for t in tensors]:
                self._written(func, out, place, tensors)
                return out
            return marked(out, PLACE, place)
        if not isinstance(out, (tuple, list)):
            return out
        if torch.compiler.is_compiling():
            out = type(out)([o.view_as(o) if isinstance(o, Tensor) else o for o in out])
        for number, each in enumerate(out):
            if isinstance(each, Tensor):
                setattr(each, PLACE, place_after(Call(func, args, kwargs, tensors, each, number, out), rule))
        return out

    def _written(self, func: Any, target: Tensor, place: Place, tensors: list[Tensor]) -> None:
        """A function wrote to `target`. If that is a view, of its base it is not known where samples stand, unless it
        was and samples were written to where they stood."""
        before, base = place_of(target), None if torch.compiler.is_compiling() else target._base
        marked(target, PLACE, place)
        if base is None:
            return
        known = type(before) is SampleAxis and type(place) is SampleAxis and before.same_as(place)
        others = [t for t in tensors if t is not target and place_of(t) is not None]
        if place_of(base) is None or (others and not known):
            found = seen_through(place, target, base) if type(place) is SampleAxis and place_of(base) is None else None
            marked(base, PLACE, found or Lost(f"its input was written to through a view by {name_of(func)}"))

    def begin(self) -> None:
        """An outermost forward begins."""
        self.active = True
        self.trains = not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or self.regions.current is not None
        )

    def repeats(self) -> bool:
        """Whether this is checkpointing's second run, which knows from the first what it is given."""
        return self.regions.current is not None and self.regions.current.run is not None

    def may_be_in_region(self) -> bool:
        """Whether it is worth a look for activation checkpointing, amid a forward pass."""
        return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None

    def may_be_reentrant(self) -> bool:
        """Whether it is worth a look at the stack: of reentrant checkpointing, the first run takes no gradients, and
        the second is in a backward pass."""
        if torch.is_grad_enabled():
            return not self.active and torch._C._current_graph_task_id() != -1
        return self.trains or not self.active

    def look_away(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module, and all that it calls, without watching."""
        outer = self.active, self.passing_by
        self.active = self.passing_by = True
        try:
            with torch._C.DisableTorchFunction():
                return forward(*args, **kwargs)
        finally:
            self.active, self.passing_by = outer

    def _cut(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        """Pages of what a function uses where no gradients are taken, as in reentrant checkpointing's first run."""
        pages = pages_of(tensors)
        if pages and is_unwatched_in_reentrant(self.regions):
            self.norms.exclude(pages, "it is used in a checkpointed function that is not a module")
            return ()
        return tuple(pages)

    def leave(self) -> None:
        """The outermost forward is over."""
        self.active = self.trains = False
        copies, self.assumptions = self.assumptions, []
        reason = "it was copied along a dimension as long as the batch, which turned out not to be the samples'"
        self.norms.exclude([e for each in copies if each.fails for e in each.entries], reason)
        arguments = [each for each in self.norms.inputs.assumptions if each.fails]
        reason = "it sees an argument with as many rows as the batch, which turned out not to be the samples'"
        self.norms.exclude([e for each in arguments for e in each.entries], reason)

    def pass_by(self, forward: Callable[..., Any], args: Any, kwargs: Any, pools: bool) -> Any:
        """Run a module that uses no parameter and leaves dimensions as they are, without watching it.

        Args:
            pools: all but the first dimension, that is.
        """
        if len(args) != 1 or kwargs:
            return forward(*args, **kwargs)
        axis = axis_of(args[0])
        if axis is None or (pools and axis.dim > 0):
            return forward(*args, **kwargs)
        self.passing_by = True
        try:
            with torch._C.DisableTorchFunction():
                out = forward(*args)
        finally:
            self.passing_by = False
        return marked(out, PLACE, axis)

    def _compute(self, func: Any, args: Any, kwargs: Any, sources: list[Source]) -> Any:
        """A function of parameters and constants."""
        if func in COPYING and self.norms.batch:
            copies = self._copies(func, args, kwargs, self.norms.batch)
            if copies is not None:
                return copies
        entries: list[Any] = []
        for source in sources:
            entries += [entry for entry in source.entries if entry not in entries]
        if torch.compiler.is_compiling():
            out = func(*args, **kwargs)
        elif self.regions.is_unwatched():
            self.norms.exclude(entries, "it is used in a checkpointed function that is not a module")
            return marked(func(*args, **kwargs), ENTRIES, ())
        else:
            with self.regions.kept():
                out = func(*args, **kwargs)
        if torch.compiler.is_compiling():
            if is_writing(func):
                marked(args[0], ENTRIES, tuple(entries))
                return remember(func, args, kwargs, out)
            out = remember(func, args, kwargs, marked(out, ENTRIES, tuple(entries)))
        else:
            out = marked(out, ENTRIES, tuple(entries))
        if func is torch.embedding and sources[0].u is None:
            marked(out, LOOKUP, (args[1], args[2] if len(args) > 2 else -1))
        elif func is Tensor.to and sources[0].lookup is not None:
            marked(out, LOOKUP, sources[0].lookup)
        return out

    def _copies(self, func: Any, args: Any, kwargs: Any, batch: int) -> Tensor | None:
        """`u.expand(B, …)` and its like, where one dimension is as long as the batch: taken for one copy a sample,
        until it meets samples."""
        u = args[0]
        out = func(*args, **kwargs)
        before = [1] * (out.ndim - u.ndim) + list(u.shape)
        dims = [d for d in range(out.ndim) if before[d] == 1 and out.shape[d] == batch]
        if len(dims) != 1 or not measurable(self.norms, source_of(u)):
            return None
        assumption = Assumption(likely=False)
        self.assumptions.append(assumption)
        axis = SampleAxis(dims[0], 1, batch, (assumption,) if batch > 1 else ())
        axis.carries(entries_of(source_of(u)))
        copies = own_copies(self.norms, u, axis, out.ndim, batch)
        times = [n // m if m else 1 for n, m in zip(out.shape, copies.shape, strict=True)]
        copies = copies.repeat(times) if max(times) > 1 else copies
        return marked(copies.contiguous() if out.is_contiguous() else copies, PLACE, axis)  # as views of it want

    def _inside(self, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function that is written in Python, and see what it calls."""
        with self:
            return inside(*args, **kwargs)

    def _meet(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        take_apart = OPERATORS.get(func)
        operator = take_apart(*args, **kwargs) if take_apart is not None else None
        if operator is not None and place_of(operator.x) is not None:
            return self._operator(operator)
        last = broadcast_but(func, tensors, args, kwargs)
        if last is not None:
            copies = self._own_copies_of_operands(func, args, kwargs, tensors, last)
            if copies is not None:
                return func(*copies[0], **copies[1])
        return self._function(func, args, kwargs, tensors)

    def _operator(self, operator: Operator) -> Tensor:
        measured = decide(self.norms, operator)
        if measured is None:
            return operator.call(operator.x, operator.weight, operator.bias)
        return measured.run(self.norms, operator.x, operator.weight, operator.bias, operator.kept)

    def _own_copies_of_operands(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], last: int
    ) -> tuple[Any, Any] | None:
        """The arguments with each source replaced by one copy a sample; None where that does not make them."""
        ndim = max([t.ndim for t in tensors])
        axis = broadcast_axis(tensors, ndim, last)
        if axis is None or axis.pick is not None or axis.dim >= ndim - last:
            return None
        sizes = [t.shape[axis.dim - ndim + t.ndim] for t in tensors if axis_of(t) is not None]
        sources = [t for t in tensors if is_source(t)]
        for u in sources:
            dim = axis.dim - ndim + u.ndim
            own = dim >= 0 and u.shape[dim] == sizes[0]
            if not own and (func in EQUAL_SIZES or (dim >= 0 and u.shape[dim] != 1)):
                return None
        if not measurable(self.norms, *(source_of(t) for t in sources)):
            return args, kwargs
        axis.carries(entries_of(*(source_of(t) for t in sources)))

        def replaced(value: Any) -> Any:
            if isinstance(value, Tensor):
                if not is_source(value):
                    return value
                dim = axis.dim - ndim + value.ndim
                if dim >= 0 and value.shape[dim] == sizes[0] and sizes[0] > 1:
                    return shared_copies(self.norms, value, axis.at(dim))
                return own_copies(self.norms, value, axis, ndim, sizes[0])
            if isinstance(value, (list, tuple)):
                return type(value)([replaced(each) for each in value])
            return value

        return replaced(args), {name: replaced(value) for name, value in kwargs.items()}

    def _function(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        out = func(*args, **kwargs)
        sources = [t for t in tensors if is_source(t)]
        entries = entries_of(*(source_of(t) for t in sources))
        places = [place for place in map(place_of, tensors) if place is not None]
        axis, reason = self._axis_of_result(func, args, kwargs, tensors, out)
        lost = [place for place in places if type(place) is Lost]
        picked = [place for place in places if type(place) is SampleAxis and place.pick is not None]
        if axis is None or axis.pick is not None or lost or picked or True in [out is t for t in tensors]:
            self.norms.exclude(entries, PICKED if picked else lost[0].reason if lost else reason)
            return out
        traced = torch.compiler.is_compiling()
        if not traced and self.regions.is_unwatched():
            self.norms.exclude(entries, reason)
            return out
        if is_random(func, args, kwargs):
            self.norms.exclude(entries, f"{name_of(func)} draws random numbers")
            return out
        if not measurable(self.norms, *(source_of(u) for u in sources)):
            return out
        rules = [function_rule(func, args, kwargs, _all_tensors(args, kwargs), u, axis) for u in sources]
        # Of compiled code the backward pass asks this, see `traced.close()`.
        if not traced and False in [rule.is_samplewise(saved, out) for rule, saved in rules]:
            self.norms.exclude(entries, f"{name_of(func)} does not treat it sample by sample")
            return out
        axis.carries(entries)
        for u, (rule, saved) in zip(sources, rules, strict=True):
            use = Use(rule, source_of(u), None, axis.batch, fused=False, axis=axis)
            out = tap(self.norms, out.clone(), use, saved)  # as functions keep their results for the backward pass
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


def _all_tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return tensors_in(args) + tensors_in(kwargs.values())


_SORTS = {torch.sort, Tensor.sort, torch.argsort, Tensor.argsort}


def _note_index(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
    """Mark indices with how they are made."""
    if func is Tensor.__setitem__:
        mark_index(args[0], index_after(Call(func, args, kwargs, tensors, args[0])))
        return
    for number, each in enumerate([out] if isinstance(out, Tensor) else out if isinstance(out, tuple) else ()):
        if isinstance(each, Tensor):
            mark_index(each, index_after(Call(func, args, kwargs, tensors, each, number)))


def mark_index(index: Tensor, made: object) -> None:
    """Mark an index with how it is made, or, if it was written to otherwise, take the mark off."""
    if made is not None:
        setattr(index, INDEX, made)
    elif hasattr(index, INDEX):
        delattr(index, INDEX)
