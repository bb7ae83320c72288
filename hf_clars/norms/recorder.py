"""What backward passes bring: `‖c_i‖²` of each use of a parameter, summed up for the gradient at hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .agreement import Agreement, is_distributed
from .backward_passes import BackwardPasses, at_end_of_pass, computes_gradient_of, reaches
from .grad_samples import GradSamples, squares_together
from .gradient_check import GradientCheck
from .gradient_life import GradientLife
from .gradient_writes import GradientWrites
from .notes import Notes
from .tracked import TrackedParameter
from .untracked import Untracked
from .uses import Use

_KEYS = itertools.count()


@dataclass
class _SharedUses:
    """Uses of one parameter in one backward pass, whose contributions add up before their norm is taken.

    Args:
        batch: samples of the pass.
        measured: of these.
        begins: whether the gradient begins with this pass.
    """

    batch: int
    measured: int
    begins: bool | Tensor
    parts: list[GradSamples] = field(default_factory=list)


class Recorder:
    """Records the norms of all parameters.

    Args:
        untracked: what is told of parameters that turn out not to be measurable.
        looks_at_shares: whether the contributions are seen, and what came past them is to be.
    """

    def __init__(self, untracked: Untracked, looks_at_shares: bool = True) -> None:
        self.untracked = untracked
        self.parameters: list[TrackedParameter] = []
        self.lives: list[GradientLife] = []
        self.follows_gradient = True
        self.watched = False  # whether a forward pass was
        self.passes = BackwardPasses()
        self.check = GradientCheck(self.passes)
        self.agreement = Agreement(self.parameters, self.passes, looks_at_shares)
        self.notes = Notes(self.parameters, self.lives)
        self.writes = GradientWrites(self.parameters, self.lives)
        self._reasons: dict[TrackedParameter, str] = {}  # of what a device may exclude
        self._shared: dict[TrackedParameter, _SharedUses] = {}  # of the backward pass under way
        # An input of every hooked output: in a compiled pass it gets what keeps the measuring from being dropped as
        # unused. And its node tells a pass for all gradients from one for some.
        self.anchor = torch.zeros((), requires_grad=True)
        self.anchor_node = get_gradient_edge(self.anchor).node
        self.key = next(_KEYS)  # by which compiled code finds it

    def track(self, module: nn.Module, attribute: str, name: str) -> TrackedParameter:
        tracked = TrackedParameter(module, attribute, name, len(self.parameters))
        self.parameters.append(tracked)
        self.lives.append(GradientLife(tracked))
        return tracked

    def tag(self, tracked: TrackedParameter, parameter: nn.Parameter) -> None:
        """The parameter is this one from now on: FSDP exchanges them."""
        tracked.tag(parameter)
        if not torch.compiler.is_compiling():
            self.agreement.watch_share(tracked, parameter)

    # --- passes ------------------------------------------------------------------------------------------------

    def begin_forward(self, measured: bool = True) -> None:
        """A forward pass begins: drop what a backward pass that failed left behind."""
        self.watched = True
        if torch.is_grad_enabled():
            self.agreement.begin_anew()
        self._drop_unfinished(self.passes.begin_forward())
        if measured and not torch.compiler.is_compiling():
            self.agreement.watch_shares()

    def begin_backward(self) -> None:
        """A backward pass reaches a use of a parameter."""
        if not self.check.decided and self.follows_gradient and self.check.begin_backward(self.parameters):
            at_end_of_pass(self.check.pause)

    def _drop_unfinished(self, unfinished: bool) -> None:
        for tracked in self.parameters:
            tracked.traced_uses = 0
        if unfinished:
            self._shared = {}
            self.agreement.abandon()

    def is_whole(self, parameters: Iterable[Tensor]) -> None:
        """Record what these parameters' uses add up to, though the backward pass goes on: their gradient is whole."""
        for tracked in self.tracked(parameters):
            self._close_shared(tracked)

    def tracked(self, parameters: Iterable[Tensor]) -> list[TrackedParameter]:
        wanted = {id(parameter) for parameter in parameters}
        return [tracked for tracked in self.parameters if id(tracked.parameter) in wanted]

    # --- contributions -----------------------------------------------------------------------------------------

    def close(self, tracked: TrackedParameter, use: Use, part: GradSamples, squares: Tensor | None = None) -> None:
        """The backward pass reached `use`; `squares` are the part's, if they are known already."""
        self.agreement.reached(tracked)
        if not self._is_shared(tracked, use):
            self.record(tracked, part.squares() if squares is None else squares, use.batch, self._begins(tracked))
            return
        shared = self._shared.get(tracked)
        if shared is None:
            shared = self._shared[tracked] = _SharedUses(use.batch, part.batch, self._begins(tracked))
            self.passes.at_end(partial(self._close_shared, tracked))
        elif shared.measured != part.batch:
            reason = (
                f"it was used with batches of {shared.measured} and {part.batch} samples in one backward pass, so its "
                "uses do not belong to the same samples; backward() for each batch would tell them apart"
            )
            self.untracked.exclude([tracked], reason)
            return
        shared.parts.append(part.kept())

    def _is_shared(self, tracked: TrackedParameter, use: Use) -> bool:
        """Whether other uses in the same pass have a part in the gradient too, so that `c_i` is a sum over uses."""
        others = tracked.reached(use)
        shared = others or use.shared.get(tracked, False) or tracked in self._shared
        use.shared[tracked] = shared
        return shared

    def _begins(self, tracked: TrackedParameter) -> bool | Tensor:
        return self.follows_gradient and self.lives[tracked.index].begins()

    def _close_shared(self, tracked: TrackedParameter) -> None:
        """The backward pass reached all uses that have a part in the gradient; nothing happens if it is recorded."""
        shared = self._shared.pop(tracked, None)
        if shared is not None:
            with self.check.measures():
                squares = squares_together(shared.parts)
            self.record(tracked, squares, shared.batch, shared.begins)

    def record(self, tracked: TrackedParameter, squares: Tensor, batch: int, begins: bool | Tensor) -> None:
        """Add one backward pass: `squares [m]` are `‖c_i‖²` of m of its `batch` samples."""
        backward, life = self.passes.outermost(), self.lives[tracked.index]
        if backward == life.recorded_in and backward == self.passes.held_others:
            reason = "it is used both inside and outside of reentrant checkpointing, or in several parts of that"
            self.untracked.exclude([tracked], reason)
        life.recorded_in = backward
        self._note(tracked, life, squares, batch, begins)

    def _note(
        self, tracked: TrackedParameter, life: GradientLife, squares: Tensor, batch: int, begins: bool | Tensor
    ) -> None:
        """Notes are summed up for all parameters together, when sums are asked for or the next pass brings more."""
        if tracked in self.notes:
            self.sum_up()
        self.notes.add(tracked, squares, batch, begins if life.samples > 0 else False)
        life.recorded = True
        life.samples += batch
        if self.writes.due:
            self.writes.begin()

    # --- passes that are not measured --------------------------------------------------------------------------

    def may_stand(self) -> bool:
        """Whether what was noted last may stand for the pass that begins. FSDP keeps gradients where we cannot look."""
        return self.notes.may_stand(self.follows_gradient)

    def let_stand(self) -> None:
        """What was noted last stands for the passes that come."""
        if not is_distributed():
            self.look_for_unwatched()  # later ones may add to gradients that this one has left alone
        self.notes.let_stand()

    def computes_gradients(self) -> bool:
        """Whether the backward pass under way computes gradients of parameters, rather than of inputs alone."""
        if not self.follows_gradient or reaches(self.anchor_node):
            return True
        parameters = (tracked.parameter for tracked in self.parameters)
        return any(parameter.requires_grad and computes_gradient_of(parameter) for parameter in parameters)

    def stand_for(self, samples: int) -> None:
        """The backward pass that begins is not measured: what was measured last stands for its samples, too."""
        self.agreement.begin_anew()
        if not self.notes.stand_for(samples, self.follows_gradient):
            for tracked, squares in self.notes.standing.items():
                self._note(tracked, self.lives[tracked.index], squares, samples, self._begins(tracked))

    def end_backward(self, unmeasured: bool) -> None:
        """A backward pass is over, and has left gradients as they are."""
        for life in self.lives:
            if life.samples:
                life.left()
            elif unmeasured:
                life.end()  # it may have come through passes that are not measured alone: nobody is to blame

    # --- sums --------------------------------------------------------------------------------------------------

    def sum_up(self) -> None:
        if self.notes.sum_up():
            self.agreement.begin_anew()

    def last(self) -> dict[str, Tensor]:
        """Name → norms of the last pass, of those samples that are measured."""
        self.sum_up()
        found = {tracked.name: self.lives[tracked.index].last for tracked in self.parameters if not tracked.excluded}
        return {name: last for name, last in found.items() if last is not None}

    def totals(self, row: int) -> dict[str, Tensor]:
        """Name → sum since reset, of this process alone."""
        self.sum_up()
        if self.notes.sums is None:
            return {}
        total = self.notes.sums.total(row)
        return {t.name: total[t.index] for t in self.parameters if self.lives[t.index].recorded and not t.excluded}

    def end_gradients(self, parameters: Iterable[Tensor] | None) -> None:
        """These gradients, by default all, were used or cleared: what was measured of them is past."""
        self.sum_up()
        ended = self.parameters if parameters is None else self.tracked(parameters)
        if any(self.lives[tracked.index].samples for tracked in ended):
            self.writes.ended(ended)
        for tracked in ended:
            self.lives[tracked.index].end()
        if self.notes.sums is not None and ended:
            if len(ended) == len(self.parameters):
                self.notes.sums.turn_all()
            else:
                self.notes.sums.turn([tracked.index for tracked in ended])
        self.agreement.begin_anew()

    def reset(self) -> None:
        self._drop_unfinished(self.passes.drop())
        self.writes.pause(self.parameters)
        self.notes.forget()
        self.agreement.begin_anew()
        for life in self.lives:
            life.end()
            life.recorded = False
            life.last = None

    # --- the gradient at hand ----------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        return self.agreement.settled(self.notes.sums)

    def of_gradient(self) -> tuple[Tensor, list[TrackedParameter]]:
        """`[3 or 4, K]`: `Σ‖c‖`, `Σ‖c‖²`, averaged over data-parallel ranks as the gradient is, and the number of
        samples; and the parameters that have a value. A collective operation when `torch.distributed` runs."""
        self.sum_up()
        if not is_distributed() or not self.parameters:
            return self.agreement.of_one_process(self.notes.sums, self.lives)
        return self.agreement.of_all(self.notes.sums_for(self.parameters[0].parameter))

    def look_for_unwatched(self) -> None:
        """In a single process: which gradients came past what was watched."""
        found = {
            tracked: gradient
            for tracked, life in zip(self.parameters, self.lives, strict=True)
            if tracked not in self._shared and (gradient := life.unwatched_gradient()) is not None
        }
        self.agreement.look_for_unwatched(found)

    def settle_check(self) -> None:
        """Exclude what the gradient's check has found since it was last asked."""
        self.agreement.note_checked(self.check.settle())

    def exclude_if(self, flag: Tensor, parameters: Iterable[TrackedParameter], reason: str) -> None:
        """These cannot be measured if that is True on its device, for that reason."""
        found = {tracked: flag for tracked in parameters if not tracked.excluded}
        self._reasons.update(dict.fromkeys(found, reason))
        self.agreement.note_checked(found)

    def learn(self, wait: bool) -> None:
        """Name what the device found to be unmeasured, here or by another process."""
        mine, others = self.agreement.news(wait)
        of_reason: dict[str, list[TrackedParameter]] = {}
        for tracked in mine:
            of_reason.setdefault(self._reasons.get(tracked) or self.check.reason(tracked), []).append(tracked)
        for reason, parameters in of_reason.items():
            self.untracked.exclude(parameters, reason)
        self.untracked.exclude(others, "another process cannot measure all of it")
