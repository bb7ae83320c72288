"""Steps whose gradient is looked at before it is clipped, and what is written of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..records.layer_records import LayerRecords
from ..seams import before_clipping, calling_trainer


class MeasuredSteps(LayerRecords, ABC):
    """Records of some of a training's steps. The device is waited for at the end of these, and at no others.

    Whatever `measure` leaves in `pending` is there until the next step begins.
    """

    def __init__(self, file_name: str, drawn: Mapping[str, str], group: str) -> None:
        super().__init__(file_name, drawn, group)
        self.trainer: Any = None
        self.pending: Any = None
        self._is_due = False

    @abstractmethod
    def is_due(self, args: Any, state: Any, optimizer: Any) -> bool:
        """Whether the step that begins is to be measured."""

    @abstractmethod
    def measure(self) -> Any:
        """Statistics of the gradient at hand, on the device; None for no record. Collective, and waits for nothing."""

    @abstractmethod
    def record(self, pending: Any, args: Any, state: Any, control: Any) -> None:
        """Write what was measured. The step is over."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.trainer = calling_trainer()
        before_clipping(self.trainer, self._observe)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pending = None  # of a step that a data set's end cut short
        self._is_due = self.is_due(args, state, kwargs.get("optimizer"))

    def _observe(self) -> None:
        if self._is_due:
            self._is_due = False
            self.pending = self.measure()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            self.record(pending, args, state, control)
