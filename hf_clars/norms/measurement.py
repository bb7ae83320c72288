"""What a forward pass must know to have its parameters measured."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from . import compiled
from .backward import hooked
from .recorder import Recorder
from .regions import Regions
from .sample_axis.axis import Assumption
from .sample_axis.tags import Bearers
from .samplers.base import Saved
from .tracked import TrackedParameter, TrackedTensor, parameters_of
from .turns import Turns, measured_of
from .untracked import Untracked
from .uses import Use
from .weight_recipes import is_outdated

MODES = ("per_sample", "subset", "micro_batch")


class Measurement:
    """The settings of `PerSampleNorms`, and where what is measured goes.

    Args:
        mode, norm_samples, total_batch_size: of `PerSampleNorms`.

    Attributes:
        recorder: of what is measured.
        regions: of activation checkpointing.
        bearers: of where samples of the pass at hand stand.
        batch: the number of samples of the pass at hand; None where it has none.
        turns: which passes are measured in the mode `subset`.
        period: how many passes one of them stands for.
        expensive: parameter name → why it takes more than plain training does to measure.
    """

    def __init__(self, mode: str, norm_samples: int, total_batch_size: int | None, untracked: Untracked) -> None:
        self.mode, self.norm_samples, self.total_batch_size = mode, norm_samples, total_batch_size
        self.untracked = untracked
        self.regions = Regions()
        self.bearers = Bearers()
        self.batch: int | None = None
        self.period = 1
        self.begin_anew()

    def begin_anew(self) -> None:
        """What was recorded is somebody else's now."""
        self.untracked.clear()
        self.expensive: dict[str, str] = {}
        self.recorder = Recorder(self.untracked, looks_at_shares=self.mode != "micro_batch")
        self.turns = Turns(self.recorder)
        compiled.register(self.recorder)

    def exclude(self, parameters: Iterable[TrackedParameter], reason: str) -> None:
        self.untracked.exclude(parameters, reason)

    def exclude_failed(self, assumptions: Iterable[Assumption], reason: str) -> None:
        """The pass is over: exclude what was measured under assumptions that fail, or may, as a device will say."""
        for each in assumptions:
            if each.fails:
                self.exclude(each.parameters, reason)
            elif each.refutations and each.parameters:
                self.recorder.exclude_if(torch.stack(each.refutations).any(), each.parameters, reason)

    def note_expensive(self, parameters: Iterable[TrackedParameter], reason: str) -> None:
        self.expensive.update({tracked.name: reason for tracked in parameters if tracked.name not in self.expensive})

    def hooked(self, y: Tensor, use: Use, saved: Saved, weight: Tensor | None = None, in_place: bool = True) -> Tensor:
        """As `backward.hooked`, for the samples that are measured."""
        use.subset = self.subset_of(use.batch)
        return hooked(self.recorder, y, use, saved, weight, in_place)

    def subset_of(self, batch: int) -> slice | None:
        """Which samples of a batch are measured; None for all."""
        if self.mode != "subset":
            return None
        wanted = measured_of(self.norm_samples, self.total_batch_size or batch, batch, self.period)
        return None if wanted == batch else slice(0, wanted * (batch // wanted), batch // wanted)

    def measures_all(self, batch: int) -> bool:
        """Whether all samples of a batch are measured."""
        return self.subset_of(batch) is None

    def can_measure(self, *tensors: TrackedTensor | None) -> bool:
        """Whether these can be measured here; those that cannot are named."""
        if torch.compiler.is_compiling():
            through = [t for t in tensors if t is not None and t.u is not None and t.lookup is None]
            unknown = [t for t in through if t.recipe is None]
            if unknown:
                reason = "what is used is computed from it by a function that draws random numbers, under torch.compile"
                self.exclude(parameters_of(*unknown), reason)
            outdated = [t for t in tensors if t is not None and t.recipe is not None and is_outdated(t.u)]
            if outdated:
                reason = "what is used is computed from it and changed in place through a view, under torch.compile"
                self.exclude(parameters_of(*outdated), reason)
            return not unknown and not outdated
        if self.regions.is_unwatched():
            self.exclude(parameters_of(*tensors), "it is used in a checkpointed function that is not a module")
            return False
        return True
