"""The `PerSampleNorms` of callbacks that measure in a Trainer whose optimizer has none."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import nn
from transformers import Trainer

from ...norms import PerSampleNorms


class OwnNorms(PerSampleNorms):
    """Shared by all callbacks of a Trainer, and attached while any of them holds it.

    Attached time and again, it says once what it cannot measure, and what that means here.
    """

    _by_trainer: ClassVar[WeakKeyDictionary[Trainer, OwnNorms]] = WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._holders: set[object] = set()
        self._warned: set[str] = set()
        super().__init__(model)

    @classmethod
    def of(cls, trainer: Trainer) -> OwnNorms:
        """That of the Trainer and the model it has now; detached, unless somebody holds it."""
        norms, model = cls._by_trainer.get(trainer), trainer.model
        if norms is None or norms.model is not model:
            assert isinstance(model, nn.Module)
            norms = cls._by_trainer[trainer] = cls(model)
            norms.detach()
        return norms

    def hold(self, callback: object) -> None:
        """Be attached until `callback`, and whoever else does so, releases it."""
        self._holders.add(callback)
        self.attach()

    def release(self, callback: object) -> None:
        """Undo `hold`; harmless when called again."""
        self._holders.discard(callback)
        if not self._holders:
            self.detach()

    def _warn(self, reasons: dict[str, Any]) -> None:
        new = {name: reason for name, reason in reasons.items() if name not in self._warned}
        if not new:
            return
        hint = (
            ""
            if self._warned
            else ". hf_clars.verify_norms(model, batch, loss_fn) shows what is measured, and how well"
        )
        self._warned |= new.keys()
        name, reason = next(iter(new.items()))
        warnings.warn(
            f"GradientStatisticsCallback leaves out {len(new)} parameter(s) that cannot be measured, such as "
            f"{name}: {reason}{hint}",
            stacklevel=2,
        )
