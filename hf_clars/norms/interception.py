"""Where a forward pass is watched: every torch function it calls that uses a measured parameter gets a tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .fallback import function_rule
from .linear_rules import PositionsRule
from .marks import (
    CUT,
    ENTRIES,
    LOOKUP,
    RECIPE,
    ROWS,
    SAMPLES,
    SHUFFLED,
    Source,
    has_samples,
    is_shuffled,
    is_source,
    marked,
    source_of,
    tensors_in,
)
from .measured import decide, entries_of, measurable, tap
from .opened import opened
from .operators import CONVOLUTIONS, COPYING, OPERATORS, Operator, broadcasts
from .recipes import recipe
from .recomputation import Regions, pages_of
from .rows import copies_rows, has_rows, shuffles
from .rule import RowsRule, Rule, Saved, SpreadRule
from .tap import Use
from .watched_forward import is_unwatched_in_reentrant

if TYPE_CHECKING:
    from .per_sample import PerSampleNorms


class Interception(TorchFunctionMode):
    """Is asked about each torch function call of a forward pass.

    It keeps track of what depends on samples (the model's inputs and all that is computed from them) and of what
    depends on parameters alone (`u = g(w)`: a standardised weight, a table of relative positions). Where the two meet,
    sample i uses its own copy of `u`, and there the norms are read off:

    * in an operator of the table `OPERATORS`: by its rule;
    * in a function that broadcasts, or copies along the batch: each sample is handed its own copy of `u`;
    * in anything else: by a vector-Jacobian product for each sample, `fallback.py`.
    """

    def __init__(self, norms: PerSampleNorms) -> None:
        super().__init__()
        self.norms = norms
        self.active = False
        self.trains = False  # the outermost forward takes gradients, or will in reentrant checkpointing's second run
        self.passing_by = False
        self.regions = Regions()
        self._computed: list[tuple[int, ...]] = []  # under torch.compile: shapes of what depends on parameters alone
        self._positions_first = False  # rows ordered by position, then by sample: the inside of attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.unflatten and torch.compiler.is_compiling():
            func = torch.unflatten  # the method asks super(), where torch 2.11's compiler cannot follow
        tensors = tensors_in(args)
        if kwargs:
            tensors += tensors_in(kwargs.values())
        samples = sources = False
        for tensor in tensors:
            if has_samples(tensor):
                samples = True
            elif is_source(tensor):
                sources = True
            elif torch.compiler.is_compiling() and self._lost_its_mark(func, tensor):
                marked(tensor, SAMPLES, True)
                samples = True
        cut: tuple[Any, ...] = ()
        if not torch.is_grad_enabled():
            sources, cut = False, self._cut(tensors) if self.trains else ()
        if sources and (inside := opened(func)) is not None:
            return self._inside(func, inside, args, kwargs)
        if not sources:
            out = func(*args, **kwargs)
        elif samples:
            out = self._meet(func, args, kwargs, tensors)
        else:
            return self._compute(func, args, kwargs, [s for s in map(source_of, tensors) if s is not None])
        if not samples:
            return marked(out, CUT, cut) if cut else out
        if func is Tensor.__setitem__:
            marked(args[0], SAMPLES, True)
        out = marked(out, SAMPLES, True)
        return marked(out, SHUFFLED, True) if shuffles(func, args, kwargs, tensors, self.norms.batch) else out

    def _lost_its_mark(self, func: Any, tensor: Tensor) -> bool:
        """Whether a tensor depends on samples though it does not say so.

        F.pad is a function that dynamo does not show to a mode, so its result has no mark. It is known again as a whole
        batch that has a gradient, or that a convolution is given. What an in-place function returns has lost its marks
        too; if it was computed from parameters alone, there was a tensor of its shape that said so.
        """
        if isinstance(tensor, nn.Parameter) or tensor.ndim < 3 or tuple(tensor.shape) in self._computed:
            return False
        return tensor.shape[0] == self.norms.batch and (tensor.requires_grad or func in CONVOLUTIONS)

    def begin(self) -> None:
        """An outermost forward begins."""
        self.active = True
        self.trains = not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or self.regions.current is not None
        )

    def leave(self) -> None:
        """The outermost forward is over."""
        self.active = self.trains = False
        self._computed = []

    def repeats(self) -> bool:
        """Whether this is checkpointing's second run, which knows from the first what it is given."""
        return self.regions.current is not None and self.regions.current.run is not None

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

    def pass_by(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module in which no parameter is used and no row leaves its place, without watching it."""
        if len(args) != 1 or kwargs or not has_samples(args[0]) or is_shuffled(args[0]):
            return forward(*args, **kwargs)
        self.passing_by = True
        try:
            with torch._C.DisableTorchFunction():
                out = forward(*args)
        finally:
            self.passing_by = False
        return marked(out, SAMPLES, True)

    def _compute(self, func: Any, args: Any, kwargs: Any, sources: list[Source]) -> Any:
        """A function of parameters and constants."""
        if func in COPYING and not self._positions_first:
            copies = self._copies(func, args, kwargs)
            if copies is not None:
                return marked(copies, SAMPLES, True)
        entries: list[Any] = []
        for source in sources:
            entries += [entry for entry in source.entries if entry not in entries]
        if not torch.compiler.is_compiling() and self.regions.is_unwatched():
            self.norms.exclude(entries, "it is used in a checkpointed function that is not a module")
            return func(*args, **kwargs)
        if torch.compiler.is_compiling():
            out = func(*args, **kwargs)
        else:
            with self.regions.kept():
                out = func(*args, **kwargs)
        out = marked(out, ENTRIES, tuple(entries))
        if isinstance(out, Tensor) and self.norms.batch and copies_rows(func, args, kwargs, out, self.norms.batch):
            marked(out, ROWS, True)
        if torch.compiler.is_compiling() and isinstance(out, Tensor):
            self._computed.append(tuple(out.shape))
            marked(out, RECIPE, recipe(func, args, kwargs))
        if func is torch.embedding and sources[0].u is None:
            marked(out, LOOKUP, (args[1], args[2] if len(args) > 2 else -1))
        elif func is Tensor.to and sources[0].lookup is not None:
            marked(out, LOOKUP, sources[0].lookup)
        return out

    def _inside(self, func: Any, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function that is written in Python, and see what it calls."""
        outer = self._positions_first
        self._positions_first = outer or func is F.multi_head_attention_forward
        try:
            with self:
                return inside(*args, **kwargs)
        finally:
            self._positions_first = outer

    def _meet(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        if True in [is_shuffled(t) for t in tensors]:
            entries = entries_of(*[source_of(t) for t in tensors])
            self.norms.exclude(entries, "it sees rows in an order in which their samples are not known")
            return func(*args, **kwargs)
        take_apart = OPERATORS.get(func)
        operator = take_apart(*args, **kwargs) if take_apart is not None else None
        if operator is not None and has_samples(operator.x):
            return self._operator(operator)
        if broadcasts(func, tensors, args, kwargs):
            copies = self._own_copies_of_operands(func, args, kwargs, tensors)
            if copies is not None:
                return func(*copies[0], **copies[1])
        if func is Tensor.expand_as and is_source(args[0]) and not self._positions_first:
            rows = self._copies(func, args, kwargs)
            if rows is not None:
                return rows
        return self._function(func, args, kwargs, tensors)

    def _operator(self, operator: Operator) -> Tensor:
        measured = decide(self.norms, operator, self._positions_first)
        if measured is None:
            return operator.call(operator.x, operator.weight, operator.bias)
        return measured.run(self.norms, operator.x, operator.weight, operator.bias, operator.kept)

    def _own_copies_of_operands(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]
    ) -> tuple[Any, Any] | None:
        """The arguments with each source replaced by one copy a sample; None where rows are not known by sample."""
        ndim = max(t.ndim for t in tensors)
        rows = {t.shape[0] for t in tensors if has_samples(t) and t.ndim == ndim and t.ndim}
        batch = self.norms.batch
        sources = [t for t in tensors if is_source(t)]
        if len(rows) != 1 or batch is None or self._positions_first:
            return None
        (count,) = rows
        if count % batch or False in [has_rows(func, t, ndim, count, batch) for t in sources]:
            return None
        if not measurable(self.norms, *(source_of(t) for t in sources)):
            return args, kwargs

        def replaced(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self._own_copies(value, ndim, batch, count // batch) if is_source(value) else value
            if isinstance(value, (list, tuple)):
                return type(value)(replaced(each) for each in value)
            return value

        return replaced(args), {name: replaced(value) for name, value in kwargs.items()}

    def _own_copies(self, u: Tensor, ndim: int, batch: int, folds: int) -> Tensor:
        """`u`, once for each sample: `[batch · folds, …]` with `ndim` dimensions. It may be so already."""
        source = source_of(u)
        assert source is not None
        shape = [1] * (ndim - u.ndim) + list(u.shape)
        copies = u.reshape(shape).expand(max(batch, shape[0]), *shape[1:])
        rule: Rule = SpreadRule(tuple(u.shape))
        saved: Saved = ()
        if source.lookup is not None:
            ids, padding = source.lookup
            rule, saved = PositionsRule(tuple(source.entries[0].parameter.shape), padding), (ids,)
            source = Source(source.entries, None)
        elif shape[0] in (batch, batch * folds) and shape[0] > 1:
            rule, saved = RowsRule(tuple(u.shape)), (torch.arange(batch, device=u.device),)
        use = Use(rule, source, None, batch, fused=False)
        copies = tap(self.norms, copies, use, saved, in_place=False)
        if copies.shape[0] < batch * folds:
            copies = copies.unsqueeze(1).expand(batch, folds, *shape[1:]).reshape(batch * folds, *shape[1:])
        return copies

    def _copies(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """`u.expand(batch, …)` and its like: each row is a sample's own. None where rows are something else."""
        u, batch = args[0], self.norms.batch
        out = func(*args, **kwargs)
        if batch is None or not out.ndim or out.shape[0] != batch or (u.ndim == out.ndim and u.shape[0] != 1):
            return None
        if not measurable(self.norms, source_of(u)):
            return out
        copies = self._own_copies(u, out.ndim, batch, 1)
        return copies.repeat([n // m if m else 1 for n, m in zip(out.shape, copies.shape, strict=True)])

    def _function(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        out = func(*args, **kwargs)
        sources = [t for t in tensors if is_source(t)]
        batch = self.norms.batch
        entries = entries_of(*(source_of(t) for t in sources))
        if (
            batch is None
            or torch.compiler.is_compiling()
            or self.regions.is_unwatched()
            or self._positions_first
            or not isinstance(out, Tensor)
            or any(out is t for t in tensors)
            or any(not t.ndim or t.shape[0] % batch for t in (out, *filter(has_samples, tensors)))
        ):
            name = getattr(func, "__name__", str(func))
            self.norms.exclude(entries, f"it is used by {name}, for which there is no rule")
            return out
        for u in sources:
            rule, saved = function_rule(func, args, kwargs, u)
            if not rule.is_samplewise(saved, out, batch):
                self.norms.exclude(entries, f"{func.__name__} does not treat it sample by sample")
                return out
            use = Use(rule, source_of(u), None, batch, fused=False)
            out = tap(self.norms, out if out._base is None else out.clone(), use, saved)
        return out
